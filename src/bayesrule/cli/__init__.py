"""Parse and dispatch; each command is one module, imported when it is called."""
