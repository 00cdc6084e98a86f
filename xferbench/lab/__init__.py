"""The half that knows torch and no statistics."""

VERSION = 1  # raised whenever the numbers that come out of the lab change; it is part of every key
