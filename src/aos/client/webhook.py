"""A receiver's side of webhooks: is this really from my dispatcher, now, and unchanged? (Standard Webhooks)"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from aos.errors import InvalidMessage, VerificationError

TOLERANCE_S = 300


def verify_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None
) -> dict[str, Any]:
    """The event in ``body``, where a signature is right and no older than five minutes.

    ``secret`` is the project's (``whsec_…``, as `aos project new` prints it). A message may come again: know it by the header
    ``webhook-id``. Raises VerificationError ``webhook.headers``, ``webhook.time``, ``webhook.signature``; InvalidMessage
    ``webhook.secret``, ``webhook.body``.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp = given["webhook-id"], given["webhook-timestamp"]
        signatures = given["webhook-signature"].split(" ")
        sent = int(timestamp)
    except (KeyError, ValueError):
        raise VerificationError("webhook.headers", "a webhook header is missing or unreadable") from None
    if abs((time.time() if now is None else now) - sent) > TOLERANCE_S:
        raise VerificationError("webhook.time", f"the message is not of the last {TOLERANCE_S} s")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidMessage("webhook.secret", "the secret is not whsec_ and base64") from None
    signed = f"{message_id}.{timestamp}.".encode() + body
    right = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    if not any([hmac.compare_digest(right.encode(), signature.encode()) for signature in signatures]):
        raise VerificationError("webhook.signature", "no signature of this message is right")
    try:
        event = json.loads(body)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise InvalidMessage("webhook.body", "the body is no JSON object")
    return event
