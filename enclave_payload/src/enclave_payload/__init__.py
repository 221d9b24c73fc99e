"""The server inside the enclave: takes an encrypted image, answers with the objects in it."""

__version__ = "0.1.0"
