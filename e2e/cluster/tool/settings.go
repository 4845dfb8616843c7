package main

import (
	"os"
	"path/filepath"
)

// Addresses. The node lives in a network namespace of its own, tied to the machine by one veth
// pair; these networks are routed over it and must not be in use on the machine.
const (
	nodeName    = "graftwork-node"
	nodeAddress = "10.98.0.1"
	hostAddress = "10.98.0.2"
	linkPrefix  = "/30"
	hostLink    = "graftwork0"
	nodeLink    = "node0"

	podNetwork     = "10.97.0.0/16"
	nodePodNetwork = "10.97.0.0/24"
	podBridge      = "pods0"

	serviceNetwork = "10.96.0.0/16"
	apiService     = "10.96.0.1"
	dnsService     = "10.96.0.10"
	clusterDomain  = "cluster.local"

	apiPort = "6443"
	apiURL  = "https://" + nodeAddress + ":" + apiPort
)

const (
	kubernetesVersion = "v1.34.2"
	pauseImage        = "graftwork.dev/pause:1"
	cgroupName        = "graftwork-cluster"
	maxPods           = 200

	volumes        = 120
	volumeCapacity = "20Gi"
	storageClass   = "standard"
)

// Exit codes, for Makefiles and tests.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitOwned       = 3 // a live owner has the cluster
	exitUnsupported = 4 // no root, or not a system this cluster runs on
)

// runDir holds what must be found by every user and every clone of this machine: there can be
// one such cluster only, because its addresses and its cgroup are the machine's.
const runDir = "/run/graftwork-cluster"

func recordFile() string { return filepath.Join(runDir, "record.json") }
func lockFile() string   { return filepath.Join(runDir, "lock") }

// layout names every path under the state folder.
type layout struct{ root string }

func stateLayout() layout {
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/root"
		}
		base = filepath.Join(home, ".local", "state")
	}
	return layout{filepath.Join(base, "graftwork", "cluster")}
}

func (l layout) path(parts ...string) string {
	return filepath.Join(append([]string{l.root}, parts...)...)
}

func (l layout) record() string               { return l.path("record.json") }
func (l layout) kubeconfig() string           { return l.path("kubeconfig") }
func (l layout) auditLog() string             { return l.path("audit", "audit.log") }
func (l layout) logs() string                 { return l.path("logs") }
func (l layout) bin() string                  { return l.path("bin") }
func (l layout) volumes() string              { return l.path("volumes") }
func (l layout) containerdSocket() string     { return l.path("containerd", "containerd.sock") }
func (l layout) pki(name string) string       { return l.path("pki", name) }
func (l layout) config(name string) string    { return l.path("config", name) }
func (l layout) clientConfig(n string) string { return l.path("config", n+".kubeconfig") }

// kubeDir is where the wrapper script built the kube, helm and pause binaries.
func kubeDir() string { return os.Getenv("GRAFTWORK_CLUSTER_BINARIES") }
