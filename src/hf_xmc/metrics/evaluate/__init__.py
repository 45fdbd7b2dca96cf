"""The metrics as evaluate modules: each folder here is one module, and the Space it is published as."""
