"""Does a config fit an accelerator slice? Compiles its step without one."""
