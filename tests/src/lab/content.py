"""What the lab's sites serve: content.py wheel|archive|image FOLDER."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile


def main(kind, folder):
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    {"wheel": wheel, "archive": archive, "image": image}[kind]()


def wheel():
    """The project `tiny` as pypi.org and files.pythonhosted.org serve it (PEP 503)."""
    file = "tiny-1.0-py3-none-any.whl"
    os.makedirs("pypi.org/simple/tiny", exist_ok=True)
    os.makedirs("files.pythonhosted.org/packages", exist_ok=True)
    info = "tiny-1.0.dist-info"
    parts = {
        "tiny.py": "GREETING = 'welcome'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    parts[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*parts, f"{info}/RECORD"])
    with zipfile.ZipFile(f"files.pythonhosted.org/packages/{file}", "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    with open("pypi.org/simple/tiny/index.html", "w") as page:
        page.write(f'<!DOCTYPE html><a href="https://files.pythonhosted.org/packages/{file}">{file}</a>\n')


def archive():
    """A Debian archive with the package `tiny`, unsigned."""
    architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
    control = "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: Lab <lab@example.org>\nDescription: tiny\n"
    os.makedirs("tiny/DEBIAN")
    with open("tiny/DEBIAN/control", "w") as file:
        file.write(control)
    pool, lists = "debian/pool", f"main/binary-{architecture}"
    os.makedirs(pool)
    os.makedirs(f"debian/dists/stable/{lists}")
    deb = f"{pool}/tiny_1.0_all.deb"
    subprocess.check_call(["dpkg-deb", "--build", "--root-owner-group", "tiny", deb], stdout=subprocess.DEVNULL)
    size, digest = measured(open(deb, "rb").read())
    packages = f"{control}Filename: pool/tiny_1.0_all.deb\nSize: {size}\nSHA256: {digest}\n\n".encode()
    entries = {f"{lists}/Packages": packages, f"{lists}/Packages.gz": gzip.compress(packages)}
    release = f"Suite: stable\nCodename: stable\nArchitectures: {architecture}\nComponents: main\nSHA256:\n"
    for name, content in entries.items():
        with open(f"debian/dists/stable/{name}", "wb") as file:
            file.write(content)
        size, digest = measured(content)
        release += f" {digest} {size} {name}\n"
    with open("debian/dists/stable/Release", "w") as file:
        file.write("Date: Thu, 01 Jan 2026 00:00:00 UTC\n" + release)


def image():
    """An image of one small layer in the OCI layout."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        content = b"welcome\n"
        entry = tarfile.TarInfo("greeting")
        entry.size = len(content)
        files.addfile(entry, io.BytesIO(content))
    os.makedirs("blobs/sha256")
    oci = "application/vnd.oci.image"
    rootfs = {"type": "layers", "diff_ids": ["sha256:" + measured(layer.getvalue())[1]]}
    config = blob(f"{oci}.config.v1+json", encoded({"architecture": "amd64", "os": "linux", "rootfs": rootfs}))
    manifest = blob(
        f"{oci}.manifest.v1+json",
        encoded(
            {
                "schemaVersion": 2,
                "mediaType": f"{oci}.manifest.v1+json",
                "config": config,
                "layers": [blob(f"{oci}.layer.v1.tar", layer.getvalue())],
            }
        ),
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    for name, content in {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": {"schemaVersion": 2, "manifests": [manifest]},
    }.items():
        with open(name, "wb") as file:
            file.write(encoded(content))


def blob(media_type, content):
    size, digest = measured(content)
    with open(f"blobs/sha256/{digest}", "wb") as file:
        file.write(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def encoded(value):
    return json.dumps(value).encode()


def measured(content):
    return len(content), hashlib.sha256(content).hexdigest()


main(*sys.argv[1:])
