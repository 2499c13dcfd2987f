"""Scripts that train agents of other libraries, as their users write them; `tests/plugins` runs each."""
