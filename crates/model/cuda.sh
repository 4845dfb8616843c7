#!/usr/bin/env bash
# What `make check-cuda`, `make test-cuda` and `make image-*-cuda` do: builds for NVIDIA GPUs of one architecture.
#
#   crates/model/cuda.sh check              type-checks everything that has the feature `cuda`; wants no GPU
#   crates/model/cuda.sh test               the tests whose names have `gpu` in them, and those of the engine's API, on
#                                           the GPU of this machine
#   crates/model/cuda.sh build FOLDER trainer|inference    binaries and the libraries they load, for an image
#   crates/model/cuda.sh image trainer|inference           the image, as an archive in the cache
#
# CUDA_COMPUTE_CAP: the GPU's architecture, 80 (A100) or newer: below it nothing computes in bf16.
# CUDA_HOME: a toolkit that is installed. Without one, and without nvcc on the PATH, PyPI's goes into a virtual
# environment outside of the clone (1.2 GB).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# The context of an image from source lacks it.
if [ -e e2e/cluster/progress.sh ]; then
	. e2e/cluster/progress.sh
else
	quietly() {
		shift
		"$@"
	}
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/graftwork
: "${CUDA_COMPUTE_CAP:=80}"
# Tests of the engine's API that the CPU alone passes: they hold answers to the bit, whatever is computed beside them or
# was computed before, and the last bits of a GPU's sums depend on how many rows share a product.
to_the_bit=(
	tokens_and_log_probabilities_do_not_depend_on_who_shares_the_batch
	a_request_that_lost_its_blocks_answers_as_if_nothing_had_happened
	the_same_seed_gives_the_same_json_in_any_company_streamed_or_not
	a_stream_with_tools_has_the_text_of_the_whole_answer
	a_forced_call_is_the_same_in_a_stream_and_beside_other_choices
	a_call_generates_what_the_same_completion_does
)
# What the images' last stage loads besides the driver, which the node gives.
libraries=(cudart cublas cublasLt curand nvrtc)
toolkit='cuda-toolkit[nvcc,cudart,cublas,curand,nvrtc,cccl,crt,nvvm]==13.0.2'

fail() {
	echo "error: $*" >&2
	exit 1
}

# Leaves the toolkit's folder in CUDA_HOME, and what the linker wants in `link`.
find_toolkit() {
	[[ $CUDA_COMPUTE_CAP =~ ^[0-9]+$ ]] && [ "$CUDA_COMPUTE_CAP" -ge 80 ] ||
		fail "CUDA_COMPUTE_CAP is $CUDA_COMPUTE_CAP, must be 80 or more, such as 80 (A100), 86 (A10), 89 (L4, L40S), 90 (H100), 100 (B200), 120 (RTX 50)"
	if [ -z "${CUDA_HOME:-}" ] && command -v nvcc >/dev/null; then
		CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
	fi
	if [ -z "${CUDA_HOME:-}" ]; then
		local venv=$cache/cuda-toolkit-13.0.2
		[ -e "$venv/complete" ] || {
			rm -rf "$venv"
			python3 -m venv "$venv"
			quietly "CUDA's toolkit (1.2 GB, once)" "$venv/bin/pip" install --disable-pip-version-check --no-cache-dir "$toolkit"
			touch "$venv/complete"
		}
		CUDA_HOME=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13)
	fi
	[ -x "$CUDA_HOME/bin/nvcc" ] || fail "$CUDA_HOME has no bin/nvcc"
	lib=$CUDA_HOME/lib64
	[ -d "$lib" ] || lib=$CUDA_HOME/lib
	# PyPI's libraries have no names for the linker, and no driver is there to link with: its functions' names are.
	link=$cache/cuda-link
	mkdir -p "$link"
	local name found driver
	for name in "${libraries[@]}"; do
		found=$(ls "$lib/lib$name.so".[0-9]* | head -n 1)
		ln -sf "$found" "$link/lib$name.so"
	done
	driver=$(cargo metadata --locked --format-version 1 | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(next(os.path.dirname(it["manifest_path"]) for it in packages if it["name"] == "cudarc"))')
	sed -n 's/.*pub unsafe fn \(cu[A-Z][A-Za-z0-9_]*\).*/void \1(void) {}/p' "$driver/src/driver/sys/mod.rs" | sort -u |
		gcc -w -shared -x c - -Wl,-soname,libcuda.so.1 -o "$link/libcuda.so"
	export CUDA_HOME CUDA_COMPUTE_CAP PATH=$CUDA_HOME/bin:$PATH
	# A folder of its own, since nearly everything compiles anew: these binaries load libraries, the others none.
	export CARGO_TARGET_DIR=$cache/target-cuda$CUDA_COMPUTE_CAP
	export RUSTFLAGS="-C target-feature=-crt-static -L native=$link"
}

# Packages, and the features of those that have one.
packages_of() {
	case $1 in
	trainer) echo --package trainer --features trainer/cuda ;;
	inference) echo --package engine --package router --features engine/cuda ;;
	*) fail "there is no CUDA image $1" ;;
	esac
}

build() { # folder, trainer|inference
	local folder=$1 binary name selection
	selection=$(packages_of "$2")
	find_toolkit
	# shellcheck disable=SC2086 # words
	quietly "building $2 for compute capability $CUDA_COMPUTE_CAP (half an hour on two cores)" \
		cargo build --locked --release $selection
	rm -rf "$folder"
	mkdir -p "$folder/bin" "$folder/lib"
	for binary in $([ "$2" = trainer ] && echo trainer || echo engine router); do
		strip -o "$folder/bin/$binary" "$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/$binary"
	done
	for name in "${libraries[@]}" nvrtc-builtins; do
		cp -L "$lib/lib$name.so".[0-9]* "$folder/lib/"
	done
}

image() { # trainer|inference
	local name=$1 reference=graftwork.dev/$1:dev-cuda$CUDA_COMPUTE_CAP
	local archive=$cache/images/$name-cuda$CUDA_COMPUTE_CAP.tar
	command -v buildah >/dev/null || command -v docker >/dev/null || fail "neither buildah nor Docker is here to make images with"
	mkdir -p "$cache/images"
	work=$(mktemp -d "$cache/images/cuda.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	build "$work/context" "$name"
	if command -v buildah >/dev/null; then
		local buildah=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)
		quietly "the image $reference" "${buildah[@]}" bud --isolation chroot --target prebuilt -t "$reference" \
			-f "$name-image/Dockerfile.cuda" "$work/context"
		quietly "its archive" "${buildah[@]}" push "$reference" "docker-archive:$work/image.tar:$reference"
	else
		quietly "the image $reference" docker build --target prebuilt -t "$reference" \
			-f "$name-image/Dockerfile.cuda" "$work/context"
		quietly "its archive" docker save -o "$work/image.tar" "$reference"
	fi
	mv "$work/image.tar" "$archive"
	echo "$reference is in $archive: load it, tag it as you like, and name it under images of a compute profile"
}

case ${1:-} in
check)
	find_toolkit
	# Its build scripts compile the kernels.
	quietly "type-checking with the feature cuda (a quarter of an hour on two cores, then seconds)" \
		cargo check --locked --package graftwork-model --package trainer --package engine --all-targets \
		--features graftwork-model/cuda,trainer/cuda,engine/cuda
	;;
test)
	ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1' || {
		echo "skipped: no GPU (no libcuda.so.1 is here, so that a binary for GPUs does not start)"
		exit
	}
	find_toolkit
	export LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	# One after the other: they share one GPU.
	cargo test --locked --package graftwork-model --package trainer --package engine \
		--features graftwork-model/cuda,trainer/cuda,engine/cuda -- --nocapture --test-threads 1 gpu
	skipped=()
	for name in "${to_the_bit[@]}"; do
		skipped+=(--skip "$name")
	done
	# The same features for the same packages: nothing is built again.
	cargo test --locked --package graftwork-model --package trainer --package engine --test suite \
		--features graftwork-model/cuda,trainer/cuda,engine/cuda -- --test-threads 1 "${skipped[@]}" \
		serving:: structured:: tools:: open_inference::
	;;
build) build "${2:?a folder}" "${3:?trainer or inference}" ;;
image) image "${2:?trainer or inference}" ;;
*) fail "usage: crates/model/cuda.sh check|test|build FOLDER NAME|image NAME" ;;
esac
