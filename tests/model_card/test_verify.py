"""A changed, missing or added file of a release is named by the program for its recipient."""

import os
import shutil
import sys
from datetime import datetime
from pathlib import Path

import pytest
import test_bom

from model_card import card, release, signing, verify
from model_card.files import (
    BOM,
    SIGNATURE,
    SUMS,
    ReleaseError,
    present_files,
    read_json,
    sha256,
    verify_sums,
    write_json,
    write_sums,
)

build, released = test_bom.build, test_bom.released


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Folder of keys (NAME.pem, NAME.pub), and a certificate of `signer` by `ca` (NAME.crt)."""
    pytest.importorskip("model_signing", reason="pip install '.[release]'")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    folder, private = tmp_path_factory.mktemp("keys"), {}
    pem = serialization.Encoding.PEM
    for name in ("signer", "other", "ca", "edwards"):
        key = ed25519.Ed25519PrivateKey.generate() if name == "edwards" else ec.generate_private_key(ec.SECP256R1())
        private[name] = key
        text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.pem").write_bytes(text)
        text = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(text)
    issuers = {"ca": "ca", "signer": "ca", "stranger": "stranger"}
    private["stranger"] = private["other"]
    names = {name: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in issuers}
    for name, issuer in issuers.items():
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        )
        usage |= {"encipher_only": False, "decipher_only": False}
        certificate = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names[issuer])
            .public_key(private[name].public_key())
            .serial_number(1 + (name == issuer))
            .not_valid_before(datetime(2026, 1, 1))
            .not_valid_after(datetime(2046, 1, 1))
            .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=name == issuer, **usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .sign(private[issuer], hashes.SHA256())
        )
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    return folder


@pytest.fixture(scope="module")
def signed(build, run, keys, tmp_path_factory):
    """A release with signatures; tests must not change it."""
    return build(tmp_path_factory.mktemp("dist") / "tiny", "--run", run, "--sign", keys / "signer.pem")


@pytest.fixture
def folder(released, tmp_path):
    """A copy of the llama variant alone, as from the Hub, to be damaged."""
    return shutil.copytree(released / "llama", tmp_path / "downloaded")


@pytest.fixture
def check(monkeypatch, capsys):
    """Function (folder, options) -> exit status and the lines that the program prints."""

    def run_verify(folder: Path, *options: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["verify", str(folder), *map(str, options)])
        status = 0
        try:
            verify.main()
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().out.splitlines()

    return run_verify


def change_a_byte(path: Path) -> None:
    """Change the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_whole_release_and_each_of_its_folders_alone_are_verified(released, folder, check):
    status, lines = check(released)
    assert status == 0 and len(lines) == 11
    assert all(line.endswith((" ok", '[release]"', "no model.sig")) for line in lines), lines
    status, lines = check(folder)
    assert status == 0 and [line.split("  ")[0] for line in lines] == [
        "SHA256SUMS",
        "bom.cdx.json, schema",
        "bom.cdx.json, hashes",
        "README.md against its files",
        "model.sig",
    ]


def test_a_changed_byte_names_its_file_for_each_file_in_turn(folder):
    names = [name for name in present_files(folder) if name != SUMS]
    assert len(names) > 20 and "model.safetensors" in names and "runs/tiny/run.json" in names
    for name in names:
        before = (folder / name).read_bytes()
        change_a_byte(folder / name)
        assert list(verify.check_sums(folder, [])) == [f"{name} was changed"]
        if name != BOM:
            assert list(verify.check_bom_hashes(folder)) == [f"{name} was changed"]
        (folder / name).write_bytes(before)
    assert list(verify.check_sums(folder, [])) == list(verify.check_bom_hashes(folder)) == []


def test_the_program_names_changed_missing_and_added_files_and_fails(folder, check):
    change_a_byte(folder / "model.safetensors")
    (folder / "config.json").unlink()
    (folder / "runs" / "pwn.py").write_text("")
    (folder / "runs" / SUMS).write_text("")
    (folder / "runs" / "link").symlink_to("/etc")
    status, lines = check(folder)
    problems = [
        *("    config.json is missing", "    model.safetensors was changed"),
        *(f"    runs/{name} was added" for name in (SUMS, "link", "pwn.py")),
    ]
    assert status == 1 and lines[1:6] == problems and lines[0].endswith("FAILED")
    assert lines[-1] == "3 of 5 checks failed."  # the card lists the files of runs/, too


def test_a_changed_card_fails_even_with_hashes_made_again(folder, check):
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(text.replace("62,656 parameters", "62,657 parameters"), encoding="utf-8")
    content = read_json(folder / BOM)
    file = next(part for part in content["components"][0]["components"] if part["name"] == "README.md")
    file["hashes"][0]["content"] = sha256(folder / "README.md")
    write_json(folder / BOM, content)
    write_sums(folder)
    for path in folder.glob(f"*/{SUMS}"):
        path.unlink()  # of a release with folders
    status, lines = check(folder)
    assert status == 1 and any("62,657" in line for line in lines), lines


def test_a_missing_list_or_bom_is_a_failure(folder, check):
    (folder / BOM).unlink()
    status, lines = check(folder)
    assert status == 1 and f"    {BOM} is missing" in lines
    (folder / SUMS).unlink()
    status, lines = check(folder)
    assert status == 1 and lines[1] == f"    {SUMS} is missing"


def test_a_file_of_the_hub_s_client_is_no_part_of_a_release(folder, check):
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "CACHEDIR.TAG").write_text("")
    assert check(folder)[0] == 0


def test_links_to_files_as_in_the_hub_s_cache_are_verified(folder, check, tmp_path):
    shutil.move(folder / "model.safetensors", tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert check(folder)[0] == 0
    change_a_byte(tmp_path / "blob")
    assert "    model.safetensors was changed" in check(folder)[1]


def test_the_names_of_strangers_reach_no_terminal(folder, check):
    (folder / "a\x1b[2J\nSHA256SUMS ok\u202e").write_text("")
    os.mkfifo(folder / "pipe")
    status, lines = check(folder)
    assert status == 1 and "    pipe was added" in lines
    assert any(line.startswith("    a\\x1b[2J ") and line.endswith("\\u202e was added") for line in lines), lines


@pytest.mark.parametrize(
    "text", ["[]", '{"components": 1}', '{"components": [{"components": [{}]}]}', "{", "[" * 9999]
)
def test_a_bom_that_is_none_is_reported(folder, check, text):
    (folder / BOM).write_text(text)
    status, lines = check(folder)
    assert status == 1 and any(line.startswith("bom.cdx.json, hashes") and line.endswith("FAILED") for line in lines)


# Signatures --------------------------------------------------------------------------------------


def test_each_folder_of_a_signed_release_is_verified_with_the_public_key(signed, released, keys, check):
    status, lines = check(signed, "--public_key", keys / "signer.pub")
    assert status == 0 and {line for line in lines if "model.sig" in line and line.endswith(" ok")} == {
        line for line in lines if "model.sig" in line
    }
    assert {path.parent.name for path in signed.rglob(SIGNATURE)} == {"llama", "custom"}
    content = read_json(signed / "llama" / BOM)
    assert {"type": "attestation", "url": SIGNATURE} in content["components"][0]["externalReferences"]
    printed = read_json(signed / "release.json")["signature"]["public_key_sha256"]
    assert printed == signing.fingerprint(keys / "signer.pem") and len(printed) == 64
    assert f"(DER) is `{printed}`" in (signed / "llama" / "README.md").read_text(encoding="utf-8")
    secret = (keys / "signer.pem").read_bytes()
    assert not any(secret in path.read_bytes() for path in signed.rglob("*") if path.is_file())
    assert check(signed)[0] == 0  # without a key it says that the signature is not checked
    status, lines = check(released / "llama", "--public_key", keys / "signer.pub")
    assert status == 1 and "    model.sig is missing" in lines


def test_the_key_of_another_is_refused(signed, keys, check):
    status, lines = check(signed / "llama", "--public_key", keys / "other.pub")
    assert status == 1 and any(line.startswith("    not a valid signature by this key") for line in lines)


def test_a_signature_names_the_changed_file_for_each_file_in_turn(signed, keys, tmp_path):
    folder = shutil.copytree(signed / "llama", tmp_path / "renamed")

    def problems() -> list[str]:
        return list(signing.check_signature(folder, keys / "signer.pub", []))

    names = [name for name in present_files(folder) if name != SIGNATURE]
    assert len(names) > 20 and {SUMS, BOM, "model.safetensors"} <= set(names) and problems() == []
    for name in names:
        before = (folder / name).read_bytes()
        change_a_byte(folder / name)
        assert problems() == [f"{name} was changed"]
        (folder / name).unlink()
        assert problems() == [f"{name} is missing"]
        (folder / name).write_bytes(before)
    (folder / "evidence" / "more.json").write_text("{}")
    assert problems() == ["evidence/more.json was added"]
    (folder / "evidence" / "more.json").unlink()
    (folder / ".gitattributes").write_text("")
    assert problems() == []
    text = (folder / SIGNATURE).read_text()
    for spoiled in (text.replace("a", "b", 1), text[:-9], "{}", ""):
        (folder / SIGNATURE).write_text(spoiled)
        assert len(problems()) == 1 and "not a valid signature" in problems()[0]


def test_hashes_made_again_by_another_do_not_pass_the_signature(signed, keys, check, tmp_path):
    folder = shutil.copytree(signed / "llama", tmp_path / "llama")
    change_a_byte(folder / "model.safetensors")
    write_sums(folder)
    status, lines = check(folder, "--public_key", keys / "signer.pub")
    assert status == 1 and lines[lines.index(next(line for line in lines if line.startswith("model.sig "))) + 1 :][
        :2
    ] == [
        "    SHA256SUMS was changed",
        "    evidence/SHA256SUMS was added",
    ]


def test_a_certificate_is_verified_by_its_issuer_and_by_no_other(keys, folder, check, tmp_path):
    signer = signing.make_signer(keys / "signer.pem", keys / "signer.crt", [])
    signing.sign_folder(folder, signer)
    assert check(folder, "--chain", keys / "ca.crt")[0] == 0
    change_a_byte(folder / "config.json")
    assert "    config.json was changed" in check(folder, "--chain", keys / "ca.crt")[1]
    change_a_byte(folder / "config.json")
    assert check(folder, "--chain", keys / "ca.crt")[0] == 0
    assert check(folder, "--chain", keys / "stranger.crt")[0] == 1
    with pytest.raises(ReleaseError, match="signer.crt cannot sign with .*other.pem"):
        signing.make_signer(keys / "other.pem", keys / "signer.crt", [])


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing.pem", "missing.pem does not exist"),
        ("signer.pub", "signer.pub is not an unencrypted private key"),
        ("edwards.pem", "edwards.pem is not an ECDSA key of the curve P-256"),
        ("dist/tiny/signer.pem", "signer.pem is inside --out, which is published"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_before_anything_is_written(build, run, keys, tmp_path, name, message):
    out = keys / "dist" / "tiny" if name.startswith("dist") else tmp_path / "out"
    with pytest.raises(ReleaseError, match=message):
        build(out, "--run", run, "--sign", keys / name)
    assert not out.exists()


def test_a_card_of_a_signed_release_is_not_rewritten(signed, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["card", str(signed)])
    with pytest.raises(ReleaseError, match="is signed, and a new card would break its signature"):
        card.main()


@pytest.mark.parametrize(
    "alter",
    [
        lambda out: (out / "llama" / "config.json").write_text("other"),
        lambda out: (out / "llama" / "config.json").unlink(),
        lambda out: (out / "llama" / "more.bin").touch(),
        lambda out: (out / "more" / "deep").mkdir(parents=True) or (out / "more" / "deep" / "file").touch(),
        lambda out: (out / "llama" / "SHA256SUMS").write_text(f"{'0' * 64}  config.json\n"),
        lambda out: (out / "llama" / "runs" / "SHA256SUMS").write_text("x"),
        lambda out: (out / "SHA256SUMS").write_text(""),
        lambda out: (out / "SHA256SUMS").unlink(),
        lambda out: (out / "SHA256SUMS").write_text((out / "SHA256SUMS").read_text() * 2),
    ],
)
def test_a_release_that_differs_from_its_lists_is_not_uploaded(dist, tmp_path, alter):
    out = shutil.copytree(dist, tmp_path / "tiny")
    verify_sums(out)
    alter(out)
    with pytest.raises(ReleaseError, match="is not the file that was verified"):
        release.push(out, "someone/tiny", private=True, api=lambda: pytest.fail("uploaded"))
