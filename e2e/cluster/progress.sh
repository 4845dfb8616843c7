# Sourced: commands that take minutes, and show that they go on.

# Runs a command with its output in a log, a line every 15 seconds, and the log's end where it fails; a failure ends the
# script with the command's status.
quietly() { # what, command...
	local what=$1 start=$SECONDS folder=${XDG_CACHE_HOME:-$HOME/.cache}/graftwork/logs log status=0
	shift
	mkdir -p "$folder"
	log=${what,,}
	log=$folder/${log//[^a-z0-9]/-}.log
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
		[ $((waited % 30)) -ne 0 ] || echo "   ... $((SECONDS - start)) s: $(tail -n 1 "$log" | cut -c 1-100)"
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
