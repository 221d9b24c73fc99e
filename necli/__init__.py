"""necli: machine learning on AWS Nitro Enclaves, from provisioning to proof."""

__version__ = "0.1.0"
