"""``python -m melanoma.cli`` is the command `melanoma`."""

from melanoma.cli import main

if __name__ == "__main__":
    main()
