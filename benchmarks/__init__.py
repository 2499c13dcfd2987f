"""Which reward scheme works, how sure are we, how fast is it."""
