#!/bin/sh
# Chromium for the tests in a browser: what is there, or Debian's, or a line that says what to install.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if command -v apt-get >/dev/null; then
    as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    echo "Installing Debian's chromium; about a minute, 400 MB."
    $as_root apt-get update -q >/dev/null && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y chromium >/dev/null && exit 0
fi
echo "There is no Chromium on the path (chromium, chromium-browser or google-chrome): install it, and run this again." >&2
exit 1
