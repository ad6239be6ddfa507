#!/bin/sh
# Packages must not start daemons while they are installed: there is no init system here to stop them.
exit 101
