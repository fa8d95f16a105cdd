"""`python -m vidgen` is the `vidgen` command."""

from vidgen.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
