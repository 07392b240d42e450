"""`python -m resect` and `torchrun -m resect`: the command line."""

from resect.cli import command

if __name__ == "__main__":
    command()
