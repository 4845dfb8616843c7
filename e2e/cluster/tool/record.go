package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process names one process for good: a pid alone is reused, a pid with its start time is not
// (within one boot).
type process struct {
	Pid   int    `json:"pid"`
	Start string `json:"start"`
}

// identify reads a live process from /proc. A zombie counts as dead: it runs no code and holds
// nothing, but can linger for as long as its parent does not ask for it.
func identify(pid int) (process, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	// The second field is the program's name in brackets and may hold spaces and brackets.
	text := string(stat)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return process{}, false
	}
	return process{Pid: pid, Start: fields[19]}, true
}

func (p process) alive() bool {
	now, ok := identify(p.Pid)
	return p.Pid > 0 && ok && now.Start == p.Start
}

// kill ends exactly this process and waits until it is gone.
func (p process) kill(limit time.Duration) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.Pid, err)
	}
	for end := time.Now().Add(limit); p.alive(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("process %d did not end within %s", p.Pid, limit)
		}
	}
	return nil
}

// record says who owns the cluster and what has to be put back when it goes. It is written
// before anything on the machine is changed and removed after everything is put back.
type record struct {
	Purpose string    `json:"purpose"`
	Clone   string    `json:"clone"`
	Owner   process   `json:"owner"`
	Boot    string    `json:"boot"`
	Started time.Time `json:"started"`
	State   string    `json:"state"`

	// Complete is set when a start has gone all the way: half a cluster is not found healthy.
	Complete bool `json:"complete"`

	// Keeper is outside the node's namespaces and Node is the first process inside them; the
	// kernel ends Node with Keeper and everything in the cluster with Node.
	Keeper process `json:"keeper"`
	Node   process `json:"node"`

	Sysctls map[string]string `json:"sysctls"`
	// Absent lists the paths that did not exist before. They go afterwards, unless somebody else uses them by then.
	Absent []string `json:"absent"`
}

// id tells one start from another, for a keeper that comes to life after its start was given up.
func (r *record) id() string { return strconv.FormatInt(r.Started.UnixNano(), 10) }

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// running: some process of the cluster is left.
func (r *record) running() bool {
	return r.Boot == bootID() && (r.Keeper.alive() || r.Node.alive())
}

// live: somebody still wants this cluster. A demo is wanted as long as it runs; a test's
// cluster as long as the test's own process does.
func (r *record) live() bool {
	if r.Boot != bootID() {
		return false
	}
	if r.Purpose == purposeTest {
		return r.Owner.alive()
	}
	return r.running()
}

// refusal is the sentence for somebody who may not have the cluster now.
func (r *record) refusal() string {
	since := r.Started.Local().Format("15:04")
	if r.Purpose == purposeTest {
		return fmt.Sprintf("a test run (process %d, of the clone %s) has used the local cluster since %s: wait until it ends, or stop it",
			r.Owner.Pid, r.Clone, since)
	}
	return fmt.Sprintf("the demo's cluster (of the clone %s) has been running since %s, and this machine can run only one: stop it with `make demo-down` first",
		r.Clone, since)
}

const (
	purposeDemo = "demo"
	purposeTest = "test"
)

func readRecord() (*record, error) {
	data, err := os.ReadFile(recordFile())
	isCopy := errors.Is(err, os.ErrNotExist)
	if isCopy {
		// On most machines /run is empty after a restart; the copy tells what was left.
		data, err = os.ReadFile(stateLayout().record())
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		if isCopy {
			// The machine lost its power while the copy was young. Nobody of that time is alive: what is left is
			// cleaned as after any restart, but for what stood outside the state folder.
			return &record{Purpose: purposeTest, State: stateLayout().root}, nil
		}
		return nil, fmt.Errorf("the record of the cluster is damaged: %w", err)
	}
	return &r, nil
}

func (r *record) write() error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	for _, file := range []string{layout{r.State}.record(), recordFile()} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		// Renamed into place, so that a reader without the lock never sees half of it.
		if err := writeSynced(file+".new", append(data, '\n')); err != nil {
			return err
		}
		if err := os.Rename(file+".new", file); err != nil {
			return err
		}
	}
	return nil
}

// writeSynced returns when the bytes are on the disk: a rename must not survive a loss of power that they don't.
func writeSynced(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Sync(), file.Close())
}

// remove ends the record; its copy went with the state folder.
func (r *record) remove() error {
	if err := os.Remove(recordFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// lock serialises everything that changes the cluster. The kernel releases it with its holder.
func lock(out *printer) (release func(), err error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return nil, err
	}
	for {
		file, err := os.OpenFile(lockFile(), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			out.say("waiting for another command that is changing the cluster")
			if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
				return nil, err
			}
		}
		// `down` removes the folder: a lock on a file that is no longer there excludes nobody.
		held, err1 := file.Stat()
		there, err2 := os.Stat(lockFile())
		if err1 == nil && err2 == nil && os.SameFile(held, there) {
			return func() { file.Close() }, nil
		}
		file.Close()
		if err := os.MkdirAll(runDir, 0o755); err != nil {
			return nil, err
		}
	}
}

func parsePid(text string) (process, error) {
	pid, err := strconv.Atoi(text)
	if err != nil {
		return process{}, fmt.Errorf("%q is not a process id", text)
	}
	p, ok := identify(pid)
	if !ok {
		return process{}, fmt.Errorf("there is no process %d", pid)
	}
	return p, nil
}
