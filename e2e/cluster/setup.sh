#!/usr/bin/env bash
# Installs what the local cluster takes from the distribution, where it is missing, and a browser for the demo. Changes
# nothing on a machine that has it all.
#
#   setup.sh          install
#   setup.sh --check  only say what of the cluster's is missing (exit code 1)
#
# Exit code 4: this machine cannot run the local cluster.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/progress.sh"
way_out='use a cluster of your own instead: `make demo CLUSTER=current`'

refuse() {
	echo "setup: a local cluster cannot run here: $1; $way_out" >&2
	exit 4
}

# Program or file to look for, and the package that brings it.
needed=(
	"containerd containerd"
	"ctr containerd"
	"runc runc"
	"/usr/lib/cni/bridge containernetworking-plugins"
	"iptables iptables"
	"conntrack conntrack"
	"ip iproute2"
	"nsenter util-linux"
	"buildah buildah"
	"strip binutils"
	"cc gcc"
	"/usr/include/stdlib.h libc6-dev"
	"jq jq"
	"curl curl"
	"python3 python3"
	"/usr/lib/python3.11/ensurepip python3-venv"
	"/usr/share/wordnet/data.noun wordnet-base"
	"/usr/lib/postgresql/15/bin/initdb postgresql-15"
	"/usr/lib/postgresql/15/bin/psql postgresql-client-15"
	"openssl openssl"
)

missing_packages() {
	local entry what package
	for entry in "${needed[@]}"; do
		read -r what package <<<"$entry"
		case $what in
		/*) [ -e "$what" ] || echo "$package" ;;
		# sbin is not on everybody's path.
		*) PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null || echo "$package" ;;
		esac
	done | sort -u
}

# What e2e/clients/page.py looks for.
has_browser() {
	local browser
	for browser in chromium-headless-shell chromium chromium-browser google-chrome; do
		! command -v "$browser" >/dev/null || return 0
	done
	return 1
}

[ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] || refuse "it needs Linux on x86-64"
[ ! -r /etc/os-release ] || . /etc/os-release
is_debian_12() { [ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ]; }
mapfile -t packages < <(missing_packages)
if [ "${1:-}" = --check ]; then
	[ "${#packages[@]}" -eq 0 ] || {
		echo "setup: not installed: ${packages[*]}" >&2
		exit 1
	}
	exit 0
fi
if [ "${#packages[@]}" -gt 0 ]; then
	[ "$(id -u)" -eq 0 ] || refuse "installing ${packages[*]} needs root"
	is_debian_12 || refuse "${packages[*]} is not installed, and this installs on Debian 12 only"
fi
# The cluster runs without it: the demo then says that nobody has opened the page.
if ! has_browser && [ "$(id -u)" -eq 0 ] && is_debian_12; then
	packages+=(chromium-headless-shell)
fi
if [ "${#packages[@]}" -eq 0 ]; then
	exit 0
fi

# Debian's package makes a server and starts it, unless it is told not to: tests start their own.
if [[ " ${packages[*]} " == *" postgresql-15 "* ]] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
	mkdir -p /etc/postgresql-common
	echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
	export UCF_FORCE_CONFFOLD=1
fi

# Debian's package enables its containerd and starts it; the cluster has one of its own, which ends with it. This policy
# holds for the installation alone, and is gone after a restart even where this is killed.
presets=/run/systemd/system-preset
remove_policy() {
	rm -f "$presets/00-graftwork-setup.preset"
	rmdir "$presets" 2>/dev/null || true
}
if [[ " ${packages[*]} " == *" containerd "* ]]; then
	trap remove_policy EXIT
	mkdir -p "$presets"
	echo 'disable containerd.service' >"$presets/00-graftwork-setup.preset"
fi

install_packages() {
	# The lock option waits for another package manager instead of failing at once.
	local try apt=(apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
	# A package mirror that fails once usually answers the next time.
	for try in 1 2 3; do
		"${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${packages[@]}" && return 0
		echo "setup: try $try failed"
		sleep $((try * 3))
	done
	return 1
}

export DEBIAN_FRONTEND=noninteractive
echo "setup: ${packages[*]}"
quietly "installing Debian packages" install_packages
