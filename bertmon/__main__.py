"""python -m bertmon."""

from bertmon.cli import main

if __name__ == "__main__":
    main()
