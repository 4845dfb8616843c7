package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// keep is the cluster's process outside its namespaces. It starts the node inside new pid,
// mount and network namespaces, joins the node's network to the machine's, and takes the
// cluster down when the test that owns it is gone. The record is there already.
func keep(id string) error {
	// The node asks the kernel to be ended with the *thread* that started it.
	runtime.LockOSThread()

	out := newPrinter()
	r, err := readRecord()
	if err != nil || r == nil || r.id() != id {
		return fmt.Errorf("this start was given up: %v", err)
	}
	self, _ := identify(os.Getpid())
	r.Keeper = self

	executable, err := os.Executable()
	if err != nil {
		return err
	}
	hold, release, err := os.Pipe()
	if err != nil {
		return err
	}
	node := exec.Command(executable, "node", r.State)
	node.Stdin = hold
	node.Stdout, node.Stderr = os.Stdout, os.Stderr
	node.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		// Nothing of the cluster outlives its keeper, not even a keeper killed with SIGKILL.
		Pdeathsig: syscall.SIGKILL,
	}
	if err := node.Start(); err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	hold.Close()
	r.Node, _ = identify(node.Process.Pid)
	if err := r.write(); err != nil {
		return err
	}
	if err := joinNetworks(node.Process.Pid); err != nil {
		return err
	}
	release.Close()
	out.say("node started as process %d", node.Process.Pid)

	ended := make(chan error, 1)
	go func() { ended <- node.Wait() }()
	watch := time.NewTicker(time.Second)
	defer watch.Stop()
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("the node ended: %v", err)
		case <-watch.C:
			if r.Purpose == purposeTest && !r.Owner.alive() {
				out.say("the owning test, process %d, is gone", r.Owner.Pid)
				return endOrphan(out, r)
			}
		}
	}
}

// endOrphan takes the cluster down unless somebody else is already doing so.
func endOrphan(out *printer, mine *record) error {
	unlock, err := lock(out)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := readRecord()
	if err != nil || now == nil || now.Keeper != mine.Keeper {
		return err
	}
	if err := teardown(out, now); err != nil {
		return err
	}
	return removeRunDir()
}

// joinNetworks lays the veth pair between the machine and the node, and routes to the
// cluster's networks over it: pods and services can be reached from the machine, whose own
// packet filter and forwarding stay as they are.
func joinNetworks(node int) error {
	for _, args := range [][]string{
		{"link", "add", hostLink, "type", "veth", "peer", "name", nodeLink, "netns", strconv.Itoa(node)},
		{"address", "add", hostAddress + linkPrefix, "dev", hostLink},
		{"link", "set", hostLink, "up"},
		{"route", "add", podNetwork, "via", nodeAddress, "dev", hostLink, "onlink"},
		{"route", "add", serviceNetwork, "via", nodeAddress, "dev", hostLink, "onlink"},
	} {
		if err := command("ip", args...); err != nil {
			return err
		}
	}
	return nil
}
