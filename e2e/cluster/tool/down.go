package main

import (
	"os"
	"time"
)

// down takes the cluster away. A demo may be ended from any clone, since it is what a refused
// test run names as the way on; a test's cluster only by its own clone or when nobody is left
// that wants it.
func down(out *printer, q request, force bool) error {
	if err := checkRoot(); err != nil {
		return err
	}
	unlock, err := lock(out)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := readRecord()
	if err != nil {
		return err
	}
	if r == nil {
		out.say("no cluster is running")
		return removeRunDir()
	}
	foreign := r.Purpose != q.purpose || r.Purpose == purposeTest && r.Clone != q.clone
	if !force && foreign && r.live() {
		return owned{r.refusal()}
	}
	start := time.Now()
	if err := teardown(out, r); err != nil {
		return err
	}
	if err := removeRunDir(); err != nil {
		return err
	}
	out.say("%-44s %5.1f s", "the cluster is gone, in all", time.Since(start).Seconds())
	return nil
}

// removeRunDir takes the lock file along; whoever waits for the lock notices and makes a new one.
func removeRunDir() error { return os.RemoveAll(runDir) }
