"""`python -m enclave_payload`, in the root of the image: serves what its config.json says.

The socket answers at once; health says `starting` until the model is loaded and warm.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from enclave_payload.app import make_app
from enclave_payload.config import Config, ConfigError
from enclave_payload.logs import log_event, start_logging
from enclave_payload.nsm import Nsm
from enclave_payload.server import listen, serve

if TYPE_CHECKING:
    from enclave_payload.pipeline import Pipeline

_CONFIG: Final = Path("config.json")
_log = logging.getLogger("enclave_payload")


def main() -> int:
    faulthandler.enable()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its native log is neither JSON nor free of shapes
    start_logging()
    try:
        config = Config.load(_CONFIG)
        listener = listen(config.listen)
    except (ConfigError, OSError) as exc:
        log_event(_log, "can't start", exc=exc, reason=str(exc))
        return 1
    nsm = Nsm(str(config.nsm))
    log_event(_log, "listening", address=str(config.listen), version=config.version)
    serve(make_app(config, nsm, lambda: _load(config, nsm)), listener)
    return 0


def _load(config: Config, nsm: Nsm) -> Pipeline:
    """Imported here, because these take seconds and the socket is to answer before."""
    from enclave_payload.detector import Detector
    from enclave_payload.envelope import MessageOpener
    from enclave_payload.kms import make_kms_client
    from enclave_payload.pipeline import Pipeline

    opener = MessageOpener(
        kms_client=make_kms_client(config.kms, nsm),
        key_arn=config.key_arn,
        encryption_context=config.encryption_context,
        max_message_bytes=config.limits.max_message_bytes,
    )
    detector = Detector.load(config.model.path)
    detector.warm_up()
    return Pipeline(config, opener=opener, detector=detector, nsm=nsm)


if __name__ == "__main__":
    sys.exit(main())
