// Reads values off the charts and the confusion matrix. Without it the page shows everything but the read-outs.
for (const figure of document.querySelectorAll("figure.charts")) {
  const charts = [...figure.querySelectorAll(".chart")].map((chart) => ({
    readings: JSON.parse(chart.querySelector("script").textContent),
    slider: chart.querySelector("input"),
    cursor: chart.querySelector(".cursor"),
    dots: [...chart.querySelectorAll(".dot")],
    values: [...chart.querySelectorAll(".legend b")],
    where: chart.querySelector(".where"),
  }));

  const show = (index) => {
    for (const { readings, slider, cursor, dots, values, where } of charts) {
      const [at, words, lines] = readings[index];
      slider.value = index;
      const named = lines.map(([text], i) => `${values[i].dataset.name} ${text}`);
      slider.setAttribute("aria-valuetext", [words, ...named].join(", "));
      where.textContent = words;
      cursor.hidden = false;
      cursor.style.left = `${100 * at}%`;
      lines.forEach(([text, height], i) => {
        values[i].textContent = text;
        dots[i].hidden = height === null || height < 0 || height > 1;
        dots[i].style.left = `${100 * at}%`;
        dots[i].style.bottom = `${100 * height}%`;
      });
    }
  };

  for (const { readings, slider } of charts) {
    let pointed = null; // the reading nearest to a pointer that is down; the slider itself takes them for evenly spread
    slider.addEventListener("input", () => show(pointed ?? Number(slider.value)));
    const point = (event) => {
      const box = slider.getBoundingClientRect();
      const at = (event.clientX - box.left) / box.width;
      const distance = (index) => Math.abs(readings[index][0] - at);
      const nearest = readings.reduce((best, _, index) => (distance(index) < distance(best) ? index : best), 0);
      pointed = event.buttons ? nearest : null;
      show(nearest);
    };
    slider.addEventListener("pointerdown", point);
    slider.addEventListener("pointermove", point);
    for (const end of ["pointerup", "pointercancel"]) {
      slider.addEventListener(end, () => setTimeout(() => (pointed = null))); // after the slider's own event
    }
  }
}

const matrix = document.querySelector(".confusion");
const reading = document.querySelector(".confusion-reading");
matrix.addEventListener("pointerover", (event) => {
  const cell = event.target.closest("td");
  if (cell) reading.textContent = cell.dataset.reading;
});

const folded = document.querySelectorAll("details.gallery");
if (matchMedia("screen and (max-width: 600px)").matches) {
  folded.forEach((gallery, index) => (gallery.open = index === 0));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
