"""``python -m wsi_mil`` is the same as ``wsimil``."""

from wsi_mil.cli import main

if __name__ == "__main__":
    main()
