#!/usr/bin/env bash
# Makes the project's images from binaries that are built already, and brings them to a cluster.
# What has not changed since the last call is neither built nor loaded again.
#
#   images.sh [FLAG...] [NAME...]        NAME: operator trainer inference e2e demo-data
#                                        (without a name: all but demo-data)
#   --to node|kind|push|none   where to: the local cluster (default), a kind cluster, a registry,
#                              or nowhere (the archives stay in the cache)
#   --tag TAG                  default `dev`; `auto` takes one that changes with the content, so
#                              that pods roll when, and only when, something changed
#   --bin FOLDER               the binaries; default: where `make build` puts them
#   --release                  those of `make release`, which are optimised: for a cluster that people use
#   --registry PREFIX          with --to push: images become PREFIX/operator:TAG, ...
#                              (REGISTRY_TLS_VERIFY=false for one without TLS)
#   --kind-name NAME           with --to kind: which kind cluster (KIND_CLUSTER_NAME, or `kind`)
#   --text FOLDER, --base-model FOLDER   what demo-data holds
#   --check                    only asks for the programs that the other flags want
#   --from-source              with Docker, from the Dockerfiles' builder stages: what machines do
#                              that are not Linux on x86-64, or lack the text of wordnet-base
#
# The tag is printed on standard output, everything else on standard error. --from-source keeps to what macOS has: bash
# 3.2, and neither flock nor sha256sum.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/graftwork
store=$cache/images
prefix=graftwork.dev
PATH=$PATH:/usr/sbin:/sbin
sha256=(sha256sum)
command -v sha256sum >/dev/null || sha256=(shasum -a 256)

to=node tag=dev registry= kind_name= from_source= check= names=()
bin=${CARGO_TARGET_DIR:-$cache/target}/x86_64-unknown-linux-gnu/debug
text=
base_model=$root/e2e/demo-data/base-model

. "$here/progress.sh"
trap tock EXIT
say() { echo "images: $*" >&2; }
fail() {
	say "$*"
	exit 1
}

while [ $# -gt 0 ]; do
	case $1 in
	--to) to=$2 && shift 2 ;;
	--tag) tag=$2 && shift 2 ;;
	--bin) bin=$2 && shift 2 ;;
	--release) bin=${bin%/*}/release && shift ;;
	--registry) registry=$2 && shift 2 ;;
	--kind-name) kind_name=$2 && shift 2 ;;
	--text) text=$2 && shift 2 ;;
	--base-model) base_model=$2 && shift 2 ;;
	--from-source) from_source=1 && shift ;;
	--check) check=1 && shift ;;
	-*) fail "unknown flag $1" ;;
	*) names+=("$1") && shift ;;
	esac
done
[ ${#names[@]} -gt 0 ] || names=(operator trainer inference e2e)
case $to in
node | kind | none) ;;
push) [ -n "$registry" ] || fail "--to push needs --registry PREFIX" ;;
*) fail "--to is node, kind, push or none" ;;
esac

dockerfile_of() {
	case $1 in
	operator) echo "$root/Dockerfile.operator" ;;
	trainer | inference) echo "$root/$1-image/Dockerfile" ;;
	e2e) echo "$root/e2e/Dockerfile" ;;
	demo-data) echo "$root/e2e/demo-data/Dockerfile" ;;
	*) fail "there is no image $1" ;;
	esac
}

binaries_of() {
	case $1 in
	operator) echo operator ;;
	trainer) echo keeper dataset-builder trainer ;;
	inference) echo engine router ;;
	e2e | demo-data) echo graftwork-e2e ;;
	esac
}

# The files that make the image, for its key.
sources_of() {
	local binary
	dockerfile_of "$1"
	for binary in $(binaries_of "$1"); do echo "$bin/$binary"; done
	if [ "$1" = demo-data ]; then
		find "$base_model" -type f
		find "$text" -name '*.jsonl' ! -name pretrain.jsonl ! -name held-out.jsonl
	fi
}

# With --from-source: the whole tree, as it stands.
tree_key() {
	(cd "$root" && git ls-files --cached --others --exclude-standard -z | LC_ALL=C sort -z | xargs -0 "${sha256[@]}" 2>/dev/null) | "${sha256[@]}" | cut -c 1-12
}

key_of() {
	[ -z "$from_source" ] || {
		tree_key
		return
	}
	# Contents only: where a clone or its target folder lies changes nothing.
	sources_of "$1" | LC_ALL=C sort | tr '\n' '\0' | xargs -0 "${sha256[@]}" | cut -d ' ' -f 1 | "${sha256[@]}" | cut -c 1-12
}

wants() { # program, what it does, where it comes from
	command -v "$1" >/dev/null || fail "$1 is not on the PATH: $2; $3"
}

# Images that went to another cluster than the one that is meant would be missed much later.
require_kind_cluster() {
	local name=${kind_name:-${KIND_CLUSTER_NAME:-kind}} all
	all=$(kind get clusters 2>/dev/null) || fail "kind does not tell its clusters: \`kind get clusters\` says why"
	[[ $'\n'$all$'\n' == *$'\n'$name$'\n'* ]] ||
		fail "there is no kind cluster $name (\`kind get clusters\` lists those that there are): make its context kind-NAME the current one, or name the cluster by KIND_CLUSTER_NAME=..."
}

# Asks for all programs before anything is made, and chooses what makes images.
choose_builder() {
	[ "$to" != kind ] || wants kind "images are loaded into the kind cluster with it" \
		"get it from https://kind.sigs.k8s.io, or push the images to a registry (IMAGES=push REGISTRY=...)"
	if [ -n "$from_source" ]; then
		builder=docker
		wants git "it lists the files that images are built from" "install the package git"
		wants docker "it builds the images from source" "get it from https://docs.docker.com/engine/install"
	elif command -v buildah >/dev/null; then
		builder=buildah
	else
		builder=docker
		wants docker "images are made with it or with buildah" "install the package buildah, or get Docker from https://docs.docker.com/engine/install"
	fi
	[ "$builder" != docker ] || docker info >/dev/null 2>&1 ||
		fail "Docker, which makes the images, does not answer: start it (\`docker info\` says what it lacks)"
	[ -n "$from_source" ] || wants strip "it takes debug information out of the binaries" "install the package binutils"
	[ "$to" != kind ] || require_kind_cluster
	case " ${names[*]} " in
	*" demo-data "*) [ -n "$from_source$text" ] || wants python3 "it makes the demo's text" "install the package python3" ;;
	esac
}

# Makes $store/NAME-KEY.tar, a docker archive of the image NAME:KEY.
build() {
	local name=$1 key=$2 archive=$3 work reference=$prefix/$1:$2 binary start=$SECONDS
	work=$(mktemp -d "$store/work.XXXXXX")
	[ -z "$from_source" ] || {
		say "building $reference from source (many minutes the first time)"
		docker build --platform linux/amd64 -t "$reference" -f "$(dockerfile_of "$name")" "$root" >&2 || fail "building $reference failed"
		docker save -o "$work/image.tar" "$reference"
		mv "$work/image.tar" "$archive"
		rm -rf "$work"
		return
	}
	mkdir -p "$work/context/bin"
	for binary in $(binaries_of "$name"); do
		# Debug information is most of a binary's size and of no use in an image.
		strip -o "$work/context/bin/$binary" "$bin/$binary"
	done
	if [ "$name" = demo-data ]; then
		mkdir -p "$work/context/data/text"
		cp -r "$base_model" "$work/context/data/base-model"
		find "$text" -name '*.jsonl' ! -name pretrain.jsonl ! -name held-out.jsonl -exec cp -t "$work/context/data/text" {} +
		chmod -R a+rX "$work/context/data"
	fi
	local log=$work/log status=0
	case $builder in
	buildah)
		local buildah=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)
		# A network namespace of its own keeps the promise that nothing is fetched.
		local alone=()
		[ "$(id -u)" -ne 0 ] || alone=(unshare --net)
		{
			"${alone[@]}" "${buildah[@]}" bud --isolation chroot --target prebuilt -t "$reference" \
				-f "$(dockerfile_of "$name")" "$work/context" &&
				"${buildah[@]}" push "$reference" "docker-archive:$work/image.tar:$reference"
		} >"$log" 2>&1 || status=$?
		;;
	docker)
		{
			docker build --network none --target prebuilt -t "$reference" -f "$(dockerfile_of "$name")" "$work/context" &&
				docker save -o "$work/image.tar" "$reference"
		} >"$log" 2>&1 || status=$?
		;;
	esac
	if [ "$status" -ne 0 ]; then
		cat "$log" >&2
		rm -rf "$work"
		fail "building $reference failed"
	fi
	mv "$work/image.tar" "$archive"
	rm -rf "$work"
	# shellcheck disable=SC2012 # names of our own making, newest first
	ls -t "$store/$name"-????????????.tar | tail -n +4 | xargs rm -f
	say "built $name ($(du -h "$archive" | cut -f 1)) in $((SECONDS - start)) s"
}

# Brings the archive's image elsewhere under another name: to a registry (docker://...) or to
# another archive (docker-archive:FILE:...).
copy_image() {
	local name=$1 key=$2 archive=$3 reference=$4 to_where=$5 work
	case $builder in
	buildah)
		work=$(mktemp -d "$store/work.XXXXXX")
		local buildah=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)
		"${buildah[@]}" pull -q "docker-archive:$archive" >/dev/null
		"${buildah[@]}" push -q --tls-verify="${REGISTRY_TLS_VERIFY:-true}" "$prefix/$name:$key" "$to_where" >&2
		rm -rf "$work"
		;;
	docker)
		docker load -q -i "$archive" >&2
		docker tag "$prefix/$name:$key" "$reference"
		case $to_where in
		docker://*) docker push -q "$reference" >&2 ;;
		*) docker save -o "$(cut -d : -f 2 <<<"$to_where")" "$reference" ;;
		esac
		;;
	esac
}

deliver() {
	local name=$1 key=$2 archive=$3 reference=$prefix/$1:$tag loaded file
	case $to in
	node)
		loaded=$("$ctr" images ls -q)
		grep -qxF "$prefix/$name:$key" <<<"$loaded" || {
			local start=$SECONDS
			"$ctr" images import "$archive" >/dev/null
			say "loaded $name in $((SECONDS - start)) s"
		}
		"$ctr" images tag --force "$prefix/$name:$key" "$reference" >/dev/null
		;;
	kind)
		file=$store/$name-for-kind.tar
		rm -f "$file"
		copy_image "$name" "$key" "$archive" "$reference" "docker-archive:$file:$reference"
		kind load image-archive "$file" ${kind_name:+--name "$kind_name"} >&2
		rm -f "$file"
		;;
	push)
		reference=${registry%/}/$name:$tag
		copy_image "$name" "$key" "$archive" "$reference" "docker://$reference"
		say "pushed $reference"
		;;
	none) ;;
	esac
}

# Makes the demo's text anew when the script that makes it has changed.
make_text() {
	local script=$root/e2e/demo-data/wordnet.py
	text=$cache/demo-text-$("${sha256[@]}" "$script" | cut -c 1-12)
	[ ! -d "$text" ] || return 0
	[ -e /usr/share/wordnet/data.noun ] ||
		fail "the demo's text is made from Debian's package wordnet-base, which is not here: install it, or use --from-source with Docker"
	say "making the demo's text from WordNet"
	tick "making the demo's text"
	rm -rf "$text.new"
	mkdir -p "$text.new"
	python3 "$script" --out "$text.new" >&2
	mv "$text.new" "$text"
	tock
}

# One call at a time: two would tear at the same archives.
one_at_a_time() {
	if command -v flock >/dev/null; then
		exec 8>"$store/lock"
		flock 8
		return
	fi
	# Without it, a file with the process that made it; that of a dead one does not count.
	held=$store/lock.pid
	until (set -o noclobber && echo $$ >"$held") 2>/dev/null; do
		kill -0 "$(cat "$held" 2>/dev/null)" 2>/dev/null || rm -f "$held"
		sleep 1
	done
	trap 'tock; rm -f "$held"' EXIT
}

choose_builder
[ -z "$check" ] || exit 0
mkdir -p "$store"
one_at_a_time
# Left by a call that was killed.
rm -rf "$store"/work.*

# Of each name, in their order.
keys=() archives=()
for name in "${names[@]}"; do
	dockerfile_of "$name" >/dev/null
	for file in $([ -n "$from_source" ] || binaries_of "$name"); do
		[ -f "$bin/$file" ] || fail "$bin/$file is not built (make build, or with --release: make release)"
	done
	if [ "$name" = demo-data ] && [ -z "$from_source" ]; then
		[ -f "$base_model/config.json" ] || fail "$base_model holds no base model (make base-model)"
		[ -n "$text" ] || make_text
	fi
	key=$(key_of "$name")
	archive=$store/$name-$key.tar
	[ -f "$archive" ] || {
		tick "making the image $name"
		build "$name" "$key" "$archive"
		tock
	}
	# Recently used ones are kept.
	touch "$archive"
	keys+=("$key")
	archives+=("$archive")
done
if [ "$tag" = auto ]; then
	# With a letter first: helm's --set takes digits alone for a number.
	tag=c$(for i in "${!names[@]}"; do echo "${names[i]} ${keys[i]}"; done | LC_ALL=C sort | "${sha256[@]}" | cut -c 1-12)
fi
if [ "$to" = node ]; then
	ctr=$("$here/cluster" path bin)/node-ctr
	[ -x "$ctr" ] || fail "no local cluster is running (e2e/cluster/cluster up)"
fi
for i in "${!names[@]}"; do
	tick "bringing the image ${names[i]} to where it is wanted"
	deliver "${names[i]}" "${keys[i]}" "${archives[i]}"
	tock
done
echo "$tag"
