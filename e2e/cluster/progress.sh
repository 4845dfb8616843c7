# Sourced: commands that take minutes, and show that they go on.

# Runs a command with its output in a log, a line after 5 seconds and every 15 from then on, and the log's end where it
# fails; a failure ends the script with the command's status.
quietly() { # what, command...
	local what=$1 start=$SECONDS folder=${XDG_CACHE_HOME:-$HOME/.cache}/graftwork/logs log status=0
	shift
	mkdir -p "$folder"
	# In words of the bash 3.2 that macOS has.
	log=$folder/$(LC_ALL=C tr '[:upper:]' '[:lower:]' <<<"$what" | LC_ALL=C tr -c 'a-z0-9\n' '-').log
	echo "== $what"
	# In a process group of its own, so that Ctrl-C ends what the command itself has started, too; and without a lock
	# that this script may hold (descriptor 9), which must go with this script.
	local pid='' waited=0
	trap '[ -z "$pid" ] || kill -TERM -- "-$pid" 2>/dev/null; wait; exit 130' INT TERM HUP
	set -m
	"$@" >"$log" 2>&1 </dev/null 9>&- &
	pid=$!
	set +m
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.5
		waited=$((waited + 1))
		[ $((waited % 30)) -ne 10 ] || echo "   ... $((SECONDS - start)) s: $(tail -n 1 "$log" | cut -c 1-100)"
	done
	wait "$pid" || status=$?
	trap - INT TERM HUP
	[ "$status" -eq 0 ] || {
		tail -n 60 "$log" >&2
		echo "error: $what failed after $((SECONDS - start)) s; all of it: $log" >&2
		exit "$status"
	}
	echo "   done in $((SECONDS - start)) s"
}

# A line on standard error for every five seconds from `tick` to `tock`, for what keeps its output to itself. The
# script calls `tock` when it ends, too.
ticker=
tick() { # what
	local what=$1 start=$SECONDS script=$$
	# It ends with a script that was killed, and holds neither its output nor a lock of it (descriptors 8 and 9).
	while sleep 1 && kill -0 "$script" 2>/dev/null; do
		[ $(((SECONDS - start) % 5)) -ne 0 ] || echo "   ... $what: $((SECONDS - start)) s"
	done >&2 8>&- 9>&- &
	ticker=$!
}
tock() {
	[ -n "$ticker" ] || return 0
	# Bash has words for a process that ends by a gentler signal before it has begun.
	kill -KILL "$ticker" 2>/dev/null || true
	wait "$ticker" 2>/dev/null || true
	ticker=
}
