"""One command, as it is typed."""

from surgery.cli.main import main


def run(capsys, *arguments):
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err
