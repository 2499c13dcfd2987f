"""What other agent libraries need to train on TextGen-v0: a module a library, and nothing but the glue."""
