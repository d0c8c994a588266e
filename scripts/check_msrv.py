#!/usr/bin/env python3
"""Checks that no dependency of the library needs a newer Rust than Cargo.toml states.

Clippy's incompatible_msrv checks the library's own use of the standard library.
"""
import json
import subprocess
import sys


def version(text):
    parts = [int(part) for part in text.split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


def main():
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    metadata = json.loads(subprocess.check_output(command))
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    stated = packages[root]["rust_version"]

    needed, todo = set(), [root]
    while todo:
        for dep in nodes[todo.pop()]["deps"]:
            # "dev" dependencies are not the user's concern.
            shipped = any(kind["kind"] in (None, "build") for kind in dep["dep_kinds"])
            if shipped and dep["pkg"] not in needed:
                needed.add(dep["pkg"])
                todo.append(dep["pkg"])

    too_new = []
    for package in (packages[identifier] for identifier in needed):
        asks = package["rust_version"]
        if asks and version(asks) > version(stated):
            too_new.append(f"{package['name']} {package['version']} needs Rust {asks}")
    if too_new:
        sys.exit(f"Cargo.toml states Rust {stated}, but\n  " + "\n  ".join(sorted(too_new)))
    print(f"Rust {stated} is enough for {len(needed)} dependencies")


if __name__ == "__main__":
    main()
