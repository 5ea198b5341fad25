#!/bin/sh
# PostgreSQL for the tests of the server's database: what is there, or Debian's, or a line that says what to install.
there() {
    command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
}
there && exit 0
if command -v apt-get >/dev/null; then
    as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    echo "Installing Debian's postgresql; about a minute, 60 MB."
    $as_root apt-get update -q >/dev/null && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y postgresql >/dev/null && there && exit 0
fi
echo "There is no PostgreSQL here (initdb): install it, and run this again." >&2
exit 1
