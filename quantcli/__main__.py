"""`python -m quantcli`: the command `quantize`."""

from quantcli.cli.main import main

if __name__ == "__main__":
    main()
