"""`python -m ballpoint.cli`."""

from ballpoint.cli.main import main

if __name__ == "__main__":
    main()
