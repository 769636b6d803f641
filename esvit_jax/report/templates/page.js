'use strict';
// Read-outs: the legend of a chart tells the values at the pointer's step.
for (const svg of document.querySelectorAll('svg[data-plot]')) {
  const [left, right, low, high, width] = svg.dataset.plot
    .split(' ').map(Number);
  const cursor = svg.querySelector('.cursor');
  const figure = svg.closest('figure');
  const outputs = [...figure.querySelectorAll('figcaption b')];
  const newest = outputs.map((x) => x.textContent);
  const curves = [...svg.querySelectorAll('.curve')].map((path) => {
    const n = path.dataset.points.split(' ').map(Number);
    return n.filter((_, i) => i % 2 == 0).map((x, i) => [x, n[2 * i + 1]]);
  });
  const steps = [...new Set(curves.flat().map((p) => p[0]))];
  const nearest = (list, step, of) => list.reduce(
    (a, b) => (Math.abs(of(b) - step) < Math.abs(of(a) - step) ? b : a));
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const share = (x - left) / (right - left);
    const step = nearest(steps, low + share * (high - low), (s) => s);
    const at = left + ((step - low) / (high - low)) * (right - left);
    cursor.removeAttribute('hidden');
    cursor.setAttribute('x1', at);
    cursor.setAttribute('x2', at);
    outputs[0].textContent = step.toLocaleString('en');
    curves.forEach((curve, i) => {
      const value = nearest(curve, step, (p) => p[0])[1];
      outputs[i + 1].textContent = String(Number(value.toPrecision(4)));
    });
  };
  const rest = () => {
    cursor.setAttribute('hidden', '');
    outputs.forEach((x, i) => (x.textContent = newest[i]));
  };
  svg.addEventListener('pointerdown', point);
  svg.addEventListener('pointermove', point);
  svg.addEventListener('pointerleave', rest);
}
// A button to copy each command.
for (const pre of document.querySelectorAll('.command pre')) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = 'Copy';
  button.addEventListener('click', async () => {
    const range = document.createRange();
    range.selectNodeContents(pre);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    let done = true;
    try {
      await navigator.clipboard.writeText(pre.textContent);
    } catch {
      done = document.execCommand('copy');
    }
    button.textContent = done ? 'Copied' : 'Selected';
    setTimeout(() => (button.textContent = 'Copy'), 1500);
  });
  pre.before(button);
}
// A picture in full size.
const dialog = document.createElement('dialog');
dialog.addEventListener('click', () => dialog.close());
document.body.append(dialog);
for (const picture of document.querySelectorAll('.picture img')) {
  picture.addEventListener('click', () => {
    dialog.replaceChildren(picture.cloneNode());
    dialog.style.setProperty('--width', `${picture.width}px`);
    dialog.showModal();
  });
}
addEventListener('beforeprint', () => {
  for (const x of document.querySelectorAll('details')) x.open = true;
});
