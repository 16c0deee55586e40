"""Help for tests: of pyvmm itself, and of programs that run guests with it."""
