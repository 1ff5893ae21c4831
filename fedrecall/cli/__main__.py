"""``python -m fedrecall.cli`` is ``fedrecall``."""

from fedrecall.cli import main

if __name__ == "__main__":
    main()
