"""The commands; each is a file that is named as a person types it."""

HELP = ("--help", "-h", "-help", "--helpfull")
