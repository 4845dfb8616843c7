package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type request struct {
	purpose string
	clone   string
	owner   process
}

// check says whether the request may have the cluster, changing nothing.
func check(q request) error {
	r, err := readRecord()
	if err != nil || r == nil || !r.live() || r.mayReuse(q) {
		return err
	}
	return owned{r.refusal()}
}

// mayReuse: the same clone may bring its demo up again and again, and one test run may do so
// from several processes that name the same owner.
func (r *record) mayReuse(q request) bool {
	if r.Purpose != q.purpose || r.Clone != q.clone {
		return false
	}
	return q.purpose == purposeDemo || r.Owner == q.owner
}

func up(out *printer, q request) error {
	if err := checkMachine(); err != nil {
		return err
	}
	start := time.Now()
	unlock, err := lock(out)
	if err != nil {
		return err
	}
	defer unlock()
	if err := check(q); err != nil {
		return err
	}
	r, err := readRecord()
	if err != nil {
		return err
	}
	if r != nil {
		if r.live() && r.running() && r.Complete {
			// What died is being started again by the node itself; give it the time.
			l := layout{r.State}
			if err := out.step("find the running cluster healthy", func(progress func(string)) error {
				return until(30*time.Second, progress, func() error { return healthy(l, time.Now().Add(-90*time.Second)) })
			}); err == nil {
				printUse(out, l)
				return nil
			}
			out.say("the running cluster does not answer: starting it afresh")
		} else if r.live() {
			out.say("cleaning up after a start that did not finish")
		} else {
			out.say("cleaning up after a cluster whose owner is gone (%s, of %s)", r.Purpose, r.Clone)
		}
		if err := teardown(out, r); err != nil {
			return err
		}
	}
	l := stateLayout()
	if linkExists(hostLink) || len(mountsUnder(l.root)) > 0 {
		out.say("cleaning up links and mounts that no record knows")
		if err := removeLink(); err != nil {
			return err
		}
	}
	if err := removeState(l.root); err != nil {
		return err
	}
	if err := checkRoutes(); err != nil {
		return err
	}
	r = &record{
		Purpose: q.purpose, Clone: q.clone, Owner: q.owner, Boot: bootID(), Started: time.Now(), State: l.root,
		Sysctls: readSysctls(), Absent: absentPaths(),
	}
	if err := r.write(); err != nil {
		return err
	}
	if err := startCluster(out, r, l); err != nil {
		fmt.Fprint(os.Stderr, logTails(l))
		// Half a cluster helps nobody, and its logs have been shown.
		if now, _ := readRecord(); now != nil {
			r = now
		}
		if clean := teardown(out, r); clean != nil {
			out.say("and cleaning up failed: %v", clean)
		} else if clean := removeRunDir(); clean != nil {
			out.say("and cleaning up failed: %v", clean)
		}
		return err
	}
	out.say("%-44s %5.1f s", "the cluster is up, in all", time.Since(start).Seconds())
	printUse(out, l)
	return nil
}

func startCluster(out *printer, r *record, l layout) error {
	if err := out.step("write certificates and configuration", func(func(string)) error {
		if err := removeCgroups(5 * time.Second); err != nil {
			return err
		}
		if err := makeCgroups(); err != nil {
			return err
		}
		return writeState(l)
	}); err != nil {
		return err
	}
	began := time.Now()
	if err := startKeeper(r, l); err != nil {
		return err
	}
	api := newAPI(l)
	wait := func(name string, limit time.Duration, check func() error) error {
		return out.step(name, func(progress func(string)) error {
			return until(limit, progress, func() error {
				err := check()
				if now, _ := readRecord(); err != nil && now != nil && now.Node.Pid != 0 && !now.Node.alive() {
					return hopeless{fmt.Errorf("the node's process has ended")}
				}
				return err
			})
		})
	}
	if err := wait("wait for the API server", 2*time.Minute, api.ready); err != nil {
		return err
	}
	if err := wait("load the pause image", time.Minute, func() error { return loadPause(l) }); err != nil {
		return err
	}
	// The API server makes these a moment after it says that it is ready.
	if err := wait("make storage class, volumes and DNS service", time.Minute, func() error { return applyAddons(api) }); err != nil {
		return err
	}
	if err := wait("wait for the node to be Ready", 2*time.Minute, func() error { return nodeReady(api, began) }); err != nil {
		return err
	}
	if err := wait("wait for names to resolve", time.Minute, namesResolve); err != nil {
		return err
	}
	if err := wait("wait for default service accounts", time.Minute, func() error {
		return api.get("/api/v1/namespaces/default/serviceaccounts/default", nil)
	}); err != nil {
		return err
	}
	// The keeper has written its part since.
	now, err := readRecord()
	if err != nil || now == nil || now.id() != r.id() {
		return fmt.Errorf("the record of this start is gone: %v", err)
	}
	now.Complete = true
	return now.write()
}

func loadPause(l layout) error {
	if _, err := os.Stat(l.containerdSocket()); err != nil {
		return fmt.Errorf("containerd has not started yet")
	}
	archive, err := pauseArchive(filepath.Join(kubeDir(), "pause"))
	if err != nil {
		return err
	}
	file := l.path("tmp", "pause.tar")
	if err := os.WriteFile(file, archive, 0o644); err != nil {
		return err
	}
	defer os.Remove(file)
	return loadImage(l, file)
}

// startKeeper leaves a daemon behind that no longer depends on this command or its terminal.
func startKeeper(r *record, l layout) error {
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(l.logs(), "keeper.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	keeper := exec.Command(executable, "keep", r.id())
	keeper.Dir = "/"
	keeper.Stdout, keeper.Stderr = log, log
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return keeper.Start()
}

// healthy: the API server answers, the node reported lately, names resolve.
func healthy(l layout, since time.Time) error {
	api := newAPI(l)
	if err := api.ready(); err != nil {
		return err
	}
	if err := nodeReady(api, since); err != nil {
		return err
	}
	return namesResolve()
}

func printUse(out *printer, l layout) {
	out.say("export KUBECONFIG=%s", l.kubeconfig())
	out.say("export PATH=%s:$PATH    # kubectl, helm, node-ctr", l.bin())
}

// logTails is the end of each daemon's log, for a start that failed.
func logTails(l layout) string {
	var b strings.Builder
	logs, _ := filepath.Glob(filepath.Join(l.logs(), "*.log"))
	for _, log := range logs {
		data, err := os.ReadFile(log)
		if err != nil || len(data) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&b, "==> %s\n", filepath.Base(log))
		for _, line := range lines[max(0, len(lines)-6):] {
			fmt.Fprintln(&b, line[:min(len(line), 300)])
		}
	}
	return b.String()
}
