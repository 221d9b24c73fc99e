"""Enclave image files (EIF): read, write, measure. The format is AWS's own, byte for byte."""

from necli.eif.describe import describe
from necli.eif.diff import EifDifference, FileChange, diff_eifs
from necli.eif.layout import Header, InvalidEif, Section, SectionType
from necli.eif.metadata import image_metadata
from necli.eif.reader import EifImage, measure_eif, read_eif
from necli.eif.signature import ImageSignature, SigningCertificate
from necli.eif.writer import write_eif

__all__ = [
    "EifDifference",
    "EifImage",
    "FileChange",
    "Header",
    "ImageSignature",
    "InvalidEif",
    "Section",
    "SectionType",
    "SigningCertificate",
    "describe",
    "diff_eifs",
    "image_metadata",
    "measure_eif",
    "read_eif",
    "write_eif",
]
