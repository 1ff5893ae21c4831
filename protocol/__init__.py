"""What both sides agree on, the version of fedrecall included."""

VERSION = "0.1.0"
