"""Sign the folders of a release, and verify a signature (OpenSSF model signing; no network).

FOLDER/model.sig is a Sigstore bundle: the sha256 of every file of the folder, signed by an ECDSA key. A key shows that
its holder signed, not who that is; a certificate, whose issuer the recipient trusts, also shows who.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from .files import FOREIGN, SIGNATURE, ReleaseError, compare_hashes, read_json

SIZES = (256, 384, 521)  # of the curves that model-signing accepts


def read_key(path: Path):
    """Return a private key from a PEM file.

    Raises:
        ReleaseError: If it is not an unencrypted ECDSA key of a size that model-signing accepts.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # lazy import: may be missing
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        raise ReleaseError(f"{path} does not exist: pass the private key with which to sign.") from None
    except (TypeError, ValueError) as error:  # encrypted; not a key
        raise ReleaseError(f"{path} is not an unencrypted private key in PEM ({error}).") from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.key_size not in SIZES:
        raise ReleaseError(
            f"{path} is not an ECDSA key of the curve P-256, P-384 or P-521: make one with "
            "`openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem`."
        )
    return key


def fingerprint(private_key: Path) -> str:
    """Return the sha256 of the public key of a private key, as of `openssl pkey -pubin -outform DER | sha256sum`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = read_key(private_key).public_key()
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def make_signer(private_key: Path, certificate: Path | None, chain: list[Path]):
    """Return the configuration of model-signing for a key, or a key with its certificate.

    Raises:
        ReleaseError: If the certificate cannot be read, or is not that of the key.
    """
    from model_signing import signing

    read_key(private_key)
    if certificate is None:
        return signing.Config().use_elliptic_key_signer(private_key=private_key)
    try:  # an empty chain fails in the library
        return signing.Config().use_certificate_signer(
            private_key=private_key, signing_certificate=certificate, certificate_chain=chain or [certificate]
        )
    except ValueError as error:
        raise ReleaseError(f"{certificate} cannot sign with {private_key}: {error}.") from None


def hashing_config():
    """Return the configuration of hashing: all files but the signature, also through links, as in the Hub's cache."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[SIGNATURE, *FOREIGN]).set_allow_symlinks(True)


def sign_folder(folder: Path, signer) -> None:
    """Write the signature of a folder, which must not change afterwards.

    Args:
        folder: The folder.
        signer: Result of `make_signer`.
    """
    signer.set_hashing_config(hashing_config()).sign(folder, folder / SIGNATURE)


def check_signature(folder: Path, public_key: Path | None, chain: list[Path]) -> Iterator[str]:
    """Yield what is wrong with the signature of a folder, with each changed, missing and added file.

    Args:
        folder: The folder.
        public_key: Public key of the signer, or None to use `chain`.
        chain: Certificates of the issuers that the recipient trusts.
    """
    from model_signing import verifying

    if not (folder / SIGNATURE).is_file():
        yield f"{SIGNATURE} is missing"
        return
    config = verifying.Config().set_hashing_config(hashing_config())
    if public_key:
        config.use_elliptic_key_verifier(public_key=public_key)
    else:
        config.use_certificate_verifier(certificate_chain=chain)
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # the library raises errors of its parsers, of cryptography and of OpenSSL
        changes = []
        if str(error).startswith("Signature mismatch"):  # the signature is valid, and the files are others
            changes = list(compare_hashes(signed_files(folder / SIGNATURE), folder, {SIGNATURE}))
        yield from changes or [f"not a valid signature by this key ({type(error).__name__}: {error})"]


def signed_files(path: Path) -> dict[str, str]:
    """Return the sha256 of each file that a signature names, whoever signed."""
    payload = json.loads(base64.b64decode(read_json(path)["dsseEnvelope"]["payload"]))
    return {file["name"]: file["digest"] for file in payload["predicate"]["resources"]}
