"""`python -m dengine_sm.cli`, the same as `dengine-sm`."""

from dengine_sm.cli import main

if __name__ == "__main__":
    main(prog_name="dengine-sm")
