#!/bin/sh
# The README's tour: one computer, from its creation to its fork. Wants a node (./dev up) and curl.
set -eu
ballpoint() { ${BALLPOINT:-.venv/bin/ballpoint} "$@"; }

# A computer, a program installed in it, and a checkpoint of both.
ballpoint create tour --skip-console
ballpoint -s tour exec -- sudo apt-get -qq update
ballpoint -s tour exec -- sudo apt-get -qq install -y figlet
ballpoint -s tour checkpoint create --comment "figlet is there"

# A service, and the URL where it is in a browser.
ballpoint -s tour exec -- sh -c 'mkdir site && figlet Hello > site/index.html'
ballpoint -s tour services create web --cmd python3 --args -m,http.server,3000,--directory,site --http-port 3000
ballpoint url update tour --auth public
url=$(ballpoint url tour | awk '$1 == "url" { print $2 }')
curl -sS --retry 5 "$url"

# Asleep it has nothing but its disk. Whoever opens the URL wakes it, its service too.
ballpoint sleep tour
ballpoint list --prefix tour
curl -sS --retry 5 "$url"
ballpoint list --prefix tour

# A second computer that begins as the checkpoint, with what was installed.
ballpoint fork tour@v0 tour-two
ballpoint -s tour-two exec -- figlet Hello again

ballpoint destroy tour --force
ballpoint destroy tour-two --force
