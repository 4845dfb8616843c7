package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// daemonEnvironment is the whole environment of every daemon: nothing of the caller's leaks
// into the cluster (proxies, GODEBUG, a KUBECONFIG of some other cluster).
func daemonEnvironment(l layout) []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + l.root,
		"TMPDIR=" + l.path("tmp"),
		"LANG=C.UTF-8",
	}
}

// daemonCommand is the command line of one daemon. All files it names are written by
// writeConfigs and writePKI.
func daemonCommand(l layout, name string) []string {
	kube := l.path("bin", name)
	switch name {
	case "etcd":
		return []string{kube,
			"--name=node", "--data-dir=" + l.path("etcd"),
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=node=http://127.0.0.1:2380",
			// The state does not outlive the cluster's processes: waiting for the disk buys nothing.
			"--unsafe-no-fsync",
			"--quota-backend-bytes=2147483648", "--log-level=warn",
		}
	case "containerd":
		return []string{"containerd", "--config", l.config("containerd.toml"), "--log-level", "info"}
	case "kube-apiserver":
		return []string{kube,
			"--etcd-servers=http://127.0.0.1:2379",
			"--bind-address=" + nodeAddress, "--advertise-address=" + nodeAddress, "--secure-port=" + apiPort,
			"--cert-dir=" + l.path("tmp"),
			"--tls-cert-file=" + l.pki("apiserver.crt"), "--tls-private-key-file=" + l.pki("apiserver.key"),
			"--client-ca-file=" + l.pki("ca.crt"),
			"--kubelet-certificate-authority=" + l.pki("ca.crt"),
			"--kubelet-client-certificate=" + l.pki("apiserver-kubelet-client.crt"),
			"--kubelet-client-key=" + l.pki("apiserver-kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--requestheader-client-ca-file=" + l.pki("front-proxy-ca.crt"),
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + l.pki("front-proxy-client.crt"),
			"--proxy-client-key-file=" + l.pki("front-proxy-client.key"),
			"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
			"--service-account-key-file=" + l.pki("service-accounts.key"),
			"--service-account-signing-key-file=" + l.pki("service-accounts.key"),
			"--service-cluster-ip-range=" + serviceNetwork,
			"--authorization-mode=Node,RBAC",
			// Added to the default set, which holds PodSecurity and ValidatingAdmissionPolicy.
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--audit-policy-file=" + l.config("audit-policy.json"),
			"--audit-log-path=" + l.auditLog(), "--audit-log-maxsize=2000",
			"--profiling=false",
		}
	case "kube-controller-manager":
		return []string{kube,
			"--kubeconfig=" + l.clientConfig(name),
			"--authentication-kubeconfig=" + l.clientConfig(name),
			"--authorization-kubeconfig=" + l.clientConfig(name),
			"--bind-address=127.0.0.1", "--cert-dir=" + l.path("tmp"),
			"--allocate-node-cidrs", "--cluster-cidr=" + podNetwork, "--service-cluster-ip-range=" + serviceNetwork,
			"--root-ca-file=" + l.pki("ca.crt"),
			"--service-account-private-key-file=" + l.pki("service-accounts.key"),
			"--cluster-signing-cert-file=" + l.pki("ca.crt"), "--cluster-signing-key-file=" + l.pki("ca.key"),
			"--use-service-account-credentials", "--leader-elect=false",
			"--kube-api-qps=100", "--kube-api-burst=200",
			// A claim that found no free volume is looked at again this often.
			"--pvclaimbinder-sync-period=5s",
			// This long after its last heartbeat a node counts as lost. Two busy cores must
			// not cost the only node.
			"--node-monitor-grace-period=3m",
			"--profiling=false",
		}
	case "kube-scheduler":
		return []string{kube,
			"--kubeconfig=" + l.clientConfig(name),
			"--authentication-kubeconfig=" + l.clientConfig(name),
			"--authorization-kubeconfig=" + l.clientConfig(name),
			"--bind-address=127.0.0.1", "--cert-dir=" + l.path("tmp"),
			"--leader-elect=false", "--profiling=false",
			// A pod waits for its claim to be bound. With this feature the scheduler tries it
			// again at once when the claim changes, now and then before its own cache of claims
			// has changed, and then not for five minutes. Without it, it waits a second.
			"--feature-gates=SchedulerPopFromBackoffQ=false",
			// Whatever else an unschedulable pod missed, it is tried again this soon.
			"--pod-max-in-unschedulable-pods-duration=10s",
		}
	case "kubelet":
		return []string{kube,
			"--config=" + l.config("kubelet.json"),
			"--kubeconfig=" + l.clientConfig(name),
			"--root-dir=" + l.path("kubelet"), "--cert-dir=" + l.path("tmp"),
			"--hostname-override=" + nodeName, "--node-ip=" + nodeAddress,
		}
	case "kube-proxy":
		return []string{kube, "--config=" + l.config("kube-proxy.json")}
	case "coredns":
		return []string{kube, "-conf", l.config("Corefile")}
	}
	panic("no such daemon: " + name)
}

// linked programs are names of the multi-call binary.
var linked = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
	"kubelet", "kube-proxy", "coredns", "kubectl"}

// writeState lays out the state folder: programs, certificates, configuration, volumes.
func writeState(l layout) error {
	for _, folder := range []string{"bin", "config", "logs", "audit", "etcd", "tmp", "volumes",
		"containerd", "containerd/root", "containerd/state", "containerd/opt", "containerd/cni", "pods-logs", "volume-plugins"} {
		if err := os.MkdirAll(l.path(folder), 0o755); err != nil {
			return err
		}
	}
	for _, name := range linked {
		if err := os.Symlink(filepath.Join(kubeDir(), "kube"), l.path("bin", name)); err != nil {
			return err
		}
	}
	if err := os.Symlink(filepath.Join(kubeDir(), "helm"), l.path("bin", "helm")); err != nil {
		return err
	}
	ctr := fmt.Sprintf("#!/bin/sh\nexec ctr --address %q --namespace k8s.io \"$@\"\n", l.containerdSocket())
	if err := os.WriteFile(l.path("bin", "node-ctr"), []byte(ctr), 0o755); err != nil {
		return err
	}
	for i := 1; i <= volumes; i++ {
		folder := filepath.Join(l.volumes(), volumeName(i))
		if err := os.MkdirAll(folder, 0o777); err != nil {
			return err
		}
		// Past the umask: images run as users of their own.
		if err := os.Chmod(folder, 0o777); err != nil {
			return err
		}
	}
	if err := writePKI(l); err != nil {
		return err
	}
	return writeConfigs(l)
}

func writeConfigs(l layout) error {
	files := map[string]any{
		"audit-policy.json": map[string]any{
			"apiVersion": "audit.k8s.io/v1", "kind": "Policy",
			"omitStages": []string{"RequestReceived"},
			"rules": []any{
				map[string]any{"level": "Metadata", "verbs": []string{"create", "update", "patch", "delete", "deletecollection"}},
				map[string]any{"level": "None"},
			},
		},
		"kubelet.json": kubeletConfig(l),
		"kube-proxy.json": map[string]any{
			"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
			"clientConnection":   map[string]any{"kubeconfig": l.clientConfig("kube-proxy")},
			"mode":               "iptables",
			"bindAddress":        nodeAddress,
			"healthzBindAddress": "127.0.0.1:10256",
			"metricsBindAddress": "127.0.0.1:10249",
			"clusterCIDR":        podNetwork,
			"hostnameOverride":   nodeName,
			"nodePortAddresses":  []string{nodeAddress + "/32"},
			// Not settable from a network namespace, or without CAP_SYS_RESOURCE.
			"oomScoreAdj": 0,
			"conntrack":   map[string]any{"maxPerCore": 0, "min": 0},
			"iptables": map[string]any{
				// An endpoint that went away is gone from the rules sooner than by default (1 s).
				"minSyncPeriod": "200ms",
				// Pods share one bridge. Where the kernel has no br_netfilter, or it is switched off, an answer of one pod
				// to another goes over the bridge past these rules, from an address that was never asked: unless the
				// question came from the node.
				"masqueradeAll": true,
			},
		},
		"cni.d/10-pods.conflist": map[string]any{
			"cniVersion": "0.4.0", "name": "pods",
			"plugins": []any{
				map[string]any{
					"type": "bridge", "bridge": podBridge,
					// The gateway sets a default route; a second one here would be "file exists".
					"isDefaultGateway": true,
					// Pods reach each other and this machine, nothing beyond.
					"ipMasq": false, "hairpinMode": true,
					"ipam": map[string]any{
						"type": "host-local", "dataDir": l.path("containerd", "cni"),
						"ranges": []any{[]any{map[string]any{"subnet": nodePodNetwork}}},
					},
				},
				map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
			},
		},
	}
	for name, content := range files {
		data, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return err
		}
		if err := writeConfig(l, name, string(data)+"\n"); err != nil {
			return err
		}
	}
	if err := writeConfig(l, "empty-resolv.conf", ""); err != nil {
		return err
	}
	if err := writeConfig(l, "containerd.toml", containerdConfig(l)); err != nil {
		return err
	}
	return writeConfig(l, "Corefile", corefile(l))
}

func writeConfig(l layout, name, content string) error {
	file := l.config(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(content), 0o644)
}

func kubeletConfig(l layout) map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": nodeAddress, "healthzBindAddress": "127.0.0.1", "readOnlyPort": 0,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": l.pki("ca.crt")},
		},
		"authorization":     map[string]any{"mode": "Webhook"},
		"tlsCertFile":       l.pki("kubelet-server.crt"),
		"tlsPrivateKeyFile": l.pki("kubelet-server.key"),

		"containerRuntimeEndpoint": "unix://" + l.containerdSocket(),
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + cgroupName,
		"enforceNodeAllocatable":   []string{"pods"},
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"oomScoreAdj":              0,
		"maxOpenFiles":             20000,
		"maxPods":                  maxPods,
		"podLogsDir":               l.path("pods-logs"),
		"volumePluginDir":          l.path("volume-plugins"),

		"clusterDNS":    []string{dnsService},
		"clusterDomain": clusterDomain,
		// The machine's search domains and servers are none of the pods' business.
		"resolvConf": l.config("empty-resolv.conf"),

		// Images are loaded by hand and cannot be pulled again: never collect them. Pods are
		// only evicted when the machine itself is about to run out.
		"imageGCHighThresholdPercent": 100,
		"evictionHard": map[string]any{
			"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%",
		},
		"kubeAPIQPS": 100, "kubeAPIBurst": 200,
		"eventRecordQPS":            0,
		"serializeImagePulls":       false,
		"nodeStatusReportFrequency": "1m0s",
		"logging":                   map[string]any{"verbosity": 1},
	}
}

func containerdConfig(l layout) string {
	return strings.NewReplacer(
		"$ROOT", l.path("containerd", "root"),
		"$STATE", l.path("containerd", "state"),
		"$OPT", l.path("containerd", "opt"),
		"$SOCKET", l.containerdSocket(),
		"$RUNC", l.path("containerd", "runc"),
		"$PAUSE", pauseImage,
		"$CNIBIN", cniPlugins,
		"$CNICONF", l.config("cni.d"),
	).Replace(`version = 2
root = "$ROOT"
state = "$STATE"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
  address = "$SOCKET"

[plugins."io.containerd.internal.v1.opt"]
  path = "$OPT"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE"
  # Without CAP_SYS_RESOURCE runc dies when told to lower a score.
  restrict_oom_score_adj = true
  # Profiles are loaded into the machine's kernel, which has no namespace for them here, and would stay there.
  disable_apparmor = true
  # Else they are mounted below /run/netns, which is the machine's.
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "$RUNC"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNIBIN"
    conf_dir = "$CNICONF"
`)
}

// CoreDNS runs as a daemon of the node rather than as a pod: no image has to be built and
// loaded before names resolve. Nothing is forwarded: a name outside the cluster does not exist.
func corefile(l layout) string {
	return `.:53 {
    errors
    health 127.0.0.1:8080
    ready 127.0.0.1:8181
    kubernetes ` + clusterDomain + ` in-addr.arpa ip6.arpa {
        kubeconfig ` + l.clientConfig("coredns") + `
        pods insecure
        ttl 5
    }
    template ANY ANY {
        rcode NXDOMAIN
    }
    loadbalance
}
`
}

func volumeName(i int) string { return fmt.Sprintf("volume-%03d", i) }
