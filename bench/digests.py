"""Digests and signed calls as crates/contract and crates/model make them: our binaries take what is made here."""

import hashlib
import json
import time
from pathlib import Path

SOURCE_NAMES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "model.safetensors.index.json",
}
VALID_SECONDS = 60


class FieldHasher:
    """SHA-256 over fields, each behind its length as eight little-endian bytes (digest.rs)."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def field(self, data: bytes) -> "FieldHasher":
        self.hash.update(len(data).to_bytes(8, "little"))
        self.hash.update(data)
        return self

    def finish(self) -> str:
        return "sha256:" + self.hash.hexdigest()


def of_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def of_json(value) -> str:
    """Keys sorted, no white space."""
    return of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def base_digest(folder: Path) -> str:
    """The identity of a base model's files (base.rs)."""
    hasher = FieldHasher()
    for path in sorted(folder.iterdir()):
        if path.name in SOURCE_NAMES or path.suffix == ".safetensors":
            hasher.field(path.name.encode()).field(path.stat().st_size.to_bytes(8, "little")).field(of_file(path))
    return hasher.finish()


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(fields: list[tuple[int, int | bool | str | bytes | None]]) -> bytes:
    """A protobuf message of numbers, texts and nested messages. As proto3 does, what is zero is left out."""
    out = bytearray()
    for number, value in fields:
        if value is None:
            continue
        if isinstance(value, int):
            if value:
                out += varint(number << 3) + varint(int(value))
            continue
        # An empty message that is there says something; an empty text does not.
        data = value.encode() if isinstance(value, str) else value
        if data or isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return bytes(out)


def decode(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a message, in order."""
    fields, at = [], 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            fields.append((key >> 3, number()))
        elif key & 7 == 2:
            length = number()
            fields.append((key >> 3, data[at:at + length]))
            at += length
        else:
            raise ValueError(f"wire type {key & 7} is not used by graftwork's messages")
    return fields


class Operator:
    """Signs calls as the operator does (signing.rs), with a key of its own."""

    def __init__(self, pod_uid: str, owner_uid: str) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"graftwork bench").digest())
        self.pod_uid, self.owner_uid, self.generation = pod_uid, owner_uid, 0

    def public_key(self) -> str:
        return self.key.public_key().public_bytes_raw().hex()

    def sign(self, method: str, body: bytes) -> bytes:
        """An encoded `SignedCall`, with the next generation."""
        self.generation += 1
        expires = int(time.time()) + VALID_SECONDS
        hasher = FieldHasher()
        for part in (
            b"graftwork/call/v1", method.encode(), of_bytes(body).encode(), self.pod_uid.encode(),
            self.owner_uid.encode(), expires.to_bytes(8, "little"), (1).to_bytes(8, "little"),
            self.generation.to_bytes(8, "little"),
        ):
            hasher.field(part)
        signature = self.key.sign(hasher.finish().encode())
        return encode([
            (1, method), (2, body), (3, self.pod_uid), (4, self.owner_uid), (5, expires), (6, 1),
            (7, self.generation), (8, signature),
        ])
