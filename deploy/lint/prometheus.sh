#!/bin/sh
# Puts Debian's `prometheus` and `promtool` into the folder $1 of an environment, where they are not on the path. Installs nothing
# else and needs no root: the package is taken apart. Where that cannot be done it says so: what needs them is then not run.
set -eu
command -v prometheus >/dev/null && command -v promtool >/dev/null && exit 0
target=$(cd "$1" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if cd "$folder" && apt-get download prometheus >/dev/null 2>&1 && dpkg-deb --extract prometheus_*.deb . 2>/dev/null; then
  cp usr/bin/prometheus usr/bin/promtool "$target"
else
  echo "promtool and prometheus are not to be had here: rules are not checked by them (apt-get install prometheus)"
fi
