def command(arguments):
    raise SystemExit


def report_page(*a, **k):
    pass
