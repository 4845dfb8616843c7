package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

type object = map[string]any

// applyAddons makes the objects that turn a control plane into a usable cluster: names, a
// storage class and volumes for claims.
func applyAddons(api *apiClient) error {
	rbac := "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:coredns"
	binding := "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:coredns"
	service := "/api/v1/namespaces/kube-system/services/kube-dns"
	slice := "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns"
	class := "/apis/storage.k8s.io/v1/storageclasses/" + storageClass
	port := func(protocol string) object {
		return object{"name": "dns-" + map[string]string{"UDP": "udp", "TCP": "tcp"}[protocol], "port": 53, "protocol": protocol}
	}
	err := errors.Join(
		api.apply(rbac, object{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
			"metadata": object{"name": "system:coredns"},
			"rules": []any{
				object{"apiGroups": []string{""}, "resources": []string{"services", "pods", "namespaces", "endpoints"}, "verbs": []string{"list", "watch"}},
				object{"apiGroups": []string{"discovery.k8s.io"}, "resources": []string{"endpointslices"}, "verbs": []string{"list", "watch"}},
			},
		}),
		api.apply(binding, object{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
			"metadata": object{"name": "system:coredns"},
			"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
			"subjects": []any{object{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}},
		}),
		// No selector: CoreDNS is a daemon of the node, so its endpoint is written by hand.
		api.apply(service, object{
			"apiVersion": "v1", "kind": "Service",
			"metadata": object{"name": "kube-dns", "labels": object{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
			"spec":     object{"clusterIP": dnsService, "ports": []any{port("UDP"), port("TCP")}},
		}),
		api.apply(slice, object{
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
			"metadata": object{"name": "kube-dns", "labels": object{
				"kubernetes.io/service-name":             "kube-dns",
				"endpointslice.kubernetes.io/managed-by": "graftwork-cluster"}},
			"addressType": "IPv4",
			"endpoints":   []any{object{"addresses": []string{nodeAddress}, "conditions": object{"ready": true}}},
			"ports":       []any{port("UDP"), port("TCP")},
		}),
		api.apply(class, object{
			"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
			"metadata": object{"name": storageClass, "annotations": object{
				"storageclass.kubernetes.io/is-default-class": "true"}},
			"provisioner":       "kubernetes.io/no-provisioner",
			"reclaimPolicy":     "Retain",
			"volumeBindingMode": "Immediate",
		}),
	)
	return errors.Join(err, applyVolumes(api))
}

func applyVolumes(api *apiClient) error {
	numbers := make(chan int)
	failed := make([]error, 0)
	var mu sync.Mutex
	var workers sync.WaitGroup
	for range 8 {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i := range numbers {
				name := volumeName(i)
				err := api.apply("/api/v1/persistentvolumes/"+name, object{
					"apiVersion": "v1", "kind": "PersistentVolume",
					"metadata": object{"name": name},
					"spec": object{
						"storageClassName":              storageClass,
						"capacity":                      object{"storage": volumeCapacity},
						"accessModes":                   []string{"ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"},
						"persistentVolumeReclaimPolicy": "Retain",
						"hostPath":                      object{"path": filepath.Join(api.layout.volumes(), name), "type": "Directory"},
					},
				})
				if err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
			}
		}()
	}
	for i := 1; i <= volumes; i++ {
		numbers <- i
	}
	close(numbers)
	workers.Wait()
	return errors.Join(failed...)
}

// recycleVolumes empties each volume whose claim is gone and offers it again, for ever.
// Kubernetes leaves that to a person when the reclaim policy is Retain, and its own Recycle
// policy would need an image from a registry.
func recycleVolumes(l layout) {
	api := newAPI(l)
	for ; ; time.Sleep(2 * time.Second) {
		var list struct {
			Items []struct {
				Metadata struct{ Name, ResourceVersion string }
				Status   struct{ Phase string }
			}
		}
		if err := api.get("/api/v1/persistentvolumes", &list); err != nil {
			continue
		}
		for _, volume := range list.Items {
			if volume.Status.Phase != "Released" {
				continue
			}
			name := volume.Metadata.Name
			if err := emptyFolder(filepath.Join(l.volumes(), filepath.Base(name))); err != nil {
				fmt.Printf("empty volume %s: %v\n", name, err)
				continue
			}
			err := api.mergePatch("/api/v1/persistentvolumes/"+name, object{
				// A volume that changed since it was listed is looked at again.
				"metadata": object{"resourceVersion": volume.Metadata.ResourceVersion},
				"spec":     object{"claimRef": nil},
			})
			if err != nil {
				fmt.Printf("offer volume %s again: %v\n", name, err)
			}
		}
	}
}

func emptyFolder(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(folder, entry.Name())); err != nil {
			return err
		}
	}
	return os.Chmod(folder, 0o777)
}

// nodeReady asks for a Ready condition whose heartbeat is younger than since: with an etcd that
// kept its state, an old Ready says nothing.
func nodeReady(api *apiClient, since time.Time) error {
	var node struct {
		Status struct {
			Conditions []struct {
				Type, Status, Message string
				LastHeartbeatTime     time.Time
			}
		}
		Spec struct{ Taints []struct{ Key string } }
	}
	if err := api.get("/api/v1/nodes/"+nodeName, &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != "Ready" {
			continue
		}
		// The condition holds whole seconds only.
		if condition.LastHeartbeatTime.Before(since.Truncate(time.Second)) {
			return fmt.Errorf("the node's heartbeat is of %s", condition.LastHeartbeatTime.Format(time.TimeOnly))
		}
		if condition.Status != "True" {
			return fmt.Errorf("node not ready: %s", condition.Message)
		}
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("node still has the taint %s", node.Spec.Taints[0].Key)
		}
		return nil
	}
	return fmt.Errorf("the node has not reported yet")
}

// namesResolve sends CoreDNS a real query, through the service's address as pods do.
func namesResolve() error {
	connection, err := net.DialTimeout("udp", dnsService+":53", time.Second)
	if err != nil {
		return err
	}
	defer connection.Close()
	connection.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := connection.Write(dnsQuery("kubernetes", "default", "svc", "cluster", "local")); err != nil {
		return err
	}
	answer := make([]byte, 512)
	n, err := connection.Read(answer)
	if err != nil {
		return fmt.Errorf("no answer from the DNS service yet")
	}
	if n < 12 || answer[3]&0x0f != 0 || binary.BigEndian.Uint16(answer[6:]) == 0 {
		return fmt.Errorf("the DNS service does not know the API server yet")
	}
	return nil
}

// dnsQuery is a question for an A record (RFC 1035, section 4).
func dnsQuery(labels ...string) []byte {
	query := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, label := range labels {
		query = append(append(query, byte(len(label))), label...)
	}
	return append(query, 0, 0, 1, 0, 1)
}
