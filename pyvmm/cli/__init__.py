"""The `pyvmm` command: one module per verb, each with `HELP` (one line) and `main(argv) -> exit status`.

`main` finds the verb, `options` reads its arguments, `signals` ends it properly, `progress` is its voice on stderr.
Nothing outside imports this package.
"""
