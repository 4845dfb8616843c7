package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// printer tells the user what happens and how long it took.
type printer struct {
	mu  sync.Mutex
	out io.Writer
}

func newPrinter() *printer { return &printer{out: os.Stdout} }

func (p *printer) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "cluster: "+format+"\n", args...)
}

// step runs work and prints its name with the time it took; while it runs for long, a line
// every five seconds says that it still does and what it waits for.
func (p *printer) step(name string, work func(progress func(string)) error) error {
	start := time.Now()
	var mu sync.Mutex
	detail := ""
	done := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Add(1)
	go func() {
		defer ticking.Done()
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				mu.Lock()
				line := fmt.Sprintf("  ... %s: %.0f s", name, time.Since(start).Seconds())
				if detail != "" {
					line += ", " + strings.TrimSpace(detail)
				}
				mu.Unlock()
				p.say("%s", line)
			}
		}
	}()
	err := work(func(text string) {
		mu.Lock()
		defer mu.Unlock()
		detail = text
	})
	close(done)
	ticking.Wait()
	took := time.Since(start).Seconds()
	if err != nil {
		return fmt.Errorf("%s (after %.1f s): %w", name, took, err)
	}
	p.say("%-44s %5.1f s", name, took)
	return nil
}

// hopeless is an error that no further waiting will cure.
type hopeless struct{ error }

// until repeats check every 100 ms until it returns nil or the limit has passed.
func until(limit time.Duration, progress func(string), check func() error) error {
	end := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return nil
		}
		var final hopeless
		if errors.As(err, &final) {
			return err
		}
		progress(err.Error())
		if time.Now().After(end) {
			return fmt.Errorf("gave up after %s: %w", limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
