"""Found through PYTHONPATH by every Python process that a test starts: they are held to loopback too."""

from offline import install

install()
