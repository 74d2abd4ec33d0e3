/* Renews the numbers of a page while it is looked at. Without it the page shows what was true when it was loaded. */
"use strict";
document.addEventListener("DOMContentLoaded", () => {
    const EVERY_MS = 2000;
    const WAIT_MS = 10000;
    const note = document.querySelector("[data-live-url]");
    if (!note) {
        return;
    }
    const shown = new Map();

    function renew(places) {
        for (const place of document.querySelectorAll("[data-live]")) {
            const content = places[place.dataset.live];
            // What has not changed is left alone: a person may be selecting it.
            if (content !== undefined && content !== shown.get(place)) {
                const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
                place.innerHTML = content;
                shown.set(place, content);
                // Who goes through the page by keyboard stays where they are.
                document.getElementById(focused)?.focus({preventScroll: true});
            }
        }
    }

    async function look() {
        try {
            // A session that has ended redirects to the login page, which has no numbers.
            const answer = await fetch(note.dataset.liveUrl, {
                headers: {Accept: "application/json"},
                redirect: "error",
                signal: AbortSignal.timeout(WAIT_MS),
            });
            if (!answer.ok) {
                throw new Error(`answered ${answer.status}`);
            }
            const {places, gone} = await answer.json();
            renew(places);
            note.classList.remove("stale");
            note.textContent = gone
                ? "Some of this was removed: reload the page."
                : `As of ${new Date().toLocaleTimeString()}.`;
        } catch (error) {
            note.classList.add("stale");
            note.textContent = `Not renewed since then: ${error.message}. Trying again.`;
        }
    }

    async function goOn() {
        if (!document.hidden) {
            await look();
        }
        setTimeout(goOn, EVERY_MS);
    }

    setTimeout(goOn, EVERY_MS);
});
